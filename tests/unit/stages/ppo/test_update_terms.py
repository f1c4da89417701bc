"""Each term of the loss has the gradient of its formula, written out here on the model's own logits."""

import pytest
import torch
from torch import Tensor

from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, optimizer, policy_parameters, ppo_config, spy


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_has_its_gradient_and_leaves_the_rewards_alone(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    config = ppo_config(
        kl_placement="loss", kl_estimator=estimator, kl_coef=0.7, num_ppo_epochs=1, minibatch_size=8,
        max_grad_norm=1e9,
    )  # fmt: skip
    trainer = make(config, reward=lambda episodes: [0.0] * len(episodes), moved=True)
    with torch.no_grad():  # neither value nor score: advantages are 0, the KL alone acts
        for parameter in trainer.models.value_head.parameters():
            parameter.zero_()
    adam = optimizer(trainer, "policy")
    calls = spy(monkeypatch, trainer, "update")
    gradients: list[Tensor | None] = []
    monkeypatch.setattr(adam, "step", lambda: gradients.extend(weight.grad for weight in policy_parameters(trainer)))
    assert trainer.step(PROMPTS)["objective/rewards"] == 0.0
    experience, base = calls[0][0][0], trainer.models.shared_base
    batch = trainer.models.collate(experience.rollouts)
    with base.role("policy"):
        ratio = (base.training_logprobs(batch, temperature=1.0) - experience.ref_logprobs)[batch.response_mask]
        kl = 0.5 * ratio**2 if estimator == "k2" else torch.exp(-ratio) - 1 + ratio
        expected = torch.autograd.grad(0.7 * kl.mean(), policy_parameters(trainer))
    assert max(gradient.abs().max().item() for gradient in expected) > 0.01
    for found, wanted in zip(gradients, expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
