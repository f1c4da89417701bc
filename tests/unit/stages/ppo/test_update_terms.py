"""Each term of the loss has the gradient of its formula, written out here on the model's own logits."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.ppo.experience import Experience
from stages.ppo.passes import PPOModels
from stages.ppo.trainer import PPOTrainer
from stages.ppo.update import Targets
from stages.seeds import batch_rows, derive_seed
from tests.unit.stages.parts import random_rows, same, snapshot
from tests.unit.stages.ppo.trainers import (
    PROMPTS,
    MakeTrainer,
    gradients_at_steps,
    made_up_experience,
    move,
    optimizer,
    policy_parameters,
    ppo_config,
    spy,
    trained,
    zero_value_head,
)

LENGTHS = [6, 1, 4, 2, 6, 3, 1, 5]
ONE_STEP: dict[str, Any] = {"num_ppo_epochs": 1, "minibatch_size": 8, "max_grad_norm": 1e9}
DEMONSTRATIONS = list(
    zip(random_rows([3] * 16, seed=81), random_rows([1, 9, 2, 5] * 4, seed=82), strict=True)
)  # of very unequal lengths


def log_softmax(trainer: PPOTrainer, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
    """Log-probabilities of all tokens [T V] at each response token of a row: one unpadded row at a time."""
    base = trainer.models.shared_base
    found = []
    with base.role("policy"):
        for prompt, response in rows:
            logits = base.peft_model.get_base_model()(torch.tensor([[*prompt, *response]])).logits[0]
            logits = logits[len(prompt) - 1 : -1] / trainer.config.rollout.temperature
            found.append(torch.log_softmax(logits, dim=-1))
    return found


def token_logprobs(everything: list[Tensor], responses: Sequence[Sequence[int]]) -> Tensor:
    """Those of the tokens that came, of all rows one after the other."""
    picked = [row[range(len(ids)), list(ids)] for row, ids in zip(everything, responses, strict=True)]
    return torch.cat(picked)


def episode_logprobs(trainer: PPOTrainer, experience: Experience) -> tuple[Tensor, Tensor]:
    """Log-probability of each response token, and the entropy there."""
    rows = [(rollout.prompt_ids, rollout.response_ids) for rollout in experience.rollouts]
    everything = log_softmax(trainer, rows)
    entropy = torch.cat([-(row.exp() * row).sum(dim=-1) for row in everything])
    return token_logprobs(everything, [response for _, response in rows]), entropy


def targets_of(experience: Experience, *, advantages: Tensor | None = None, **settings: Any) -> Targets:
    """Targets without any pull but the given one."""
    nothing = torch.zeros_like(experience.old_logprobs)
    values = {"returns": experience.values, "importance_weights": None, "kl_coef": 0.0, **settings}
    return Targets(advantages=nothing if advantages is None else advantages, **values)


def random_advantages(experience: Experience) -> Tensor:
    """Of both signs, 0 on padding."""
    drawn = torch.randn(experience.old_logprobs.shape, generator=torch.Generator().manual_seed(9))
    return drawn * experience.response_mask


def assert_gradients(found: list[Tensor], loss: Tensor, trainer: PPOTrainer) -> None:
    expected = torch.autograd.grad(loss, policy_parameters(trainer))
    assert max(gradient.abs().max().item() for gradient in expected) > 0.005
    for one, wanted in zip(found, expected, strict=True):
        # float32 over two layers, one in padded batches and one row by row
        torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_has_its_gradient_and_leaves_the_rewards_alone(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    config = ppo_config(kl_placement="loss", kl_estimator=estimator, kl_coef=0.7, **ONE_STEP)
    trainer = make(config, reward=lambda episodes: [0.0] * len(episodes), moved=True)
    zero_value_head(trainer)  # neither value nor score: advantages are 0, the KL alone acts
    gradients = gradients_at_steps(monkeypatch, trainer, "policy")
    calls = spy(monkeypatch, trainer, "update")
    metrics = trainer.step(PROMPTS)
    assert metrics["objective/rewards"] == 0.0
    experience = calls[0][0][0]
    ratio = episode_logprobs(trainer, experience)[0] - experience.ref_logprobs[experience.response_mask]
    kl = 0.5 * ratio**2 if estimator == "k2" else torch.exp(-ratio) - 1 + ratio
    assert_gradients(gradients[0], 0.7 * kl.mean(), trainer)
    assert metrics["policy/loss"] == pytest.approx(0.7 * kl.mean().item(), rel=1e-4)


@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_the_dual_clip_bounds_tokens_of_negative_advantage(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, dual_clip: float | None
) -> None:
    trainer = make(ppo_config(dual_clip=dual_clip, **ONE_STEP))
    experience = made_up_experience(trainer, LENGTHS)
    advantages = random_advantages(experience)
    weights = torch.linspace(0.5, 1.5, advantages.numel()).view_as(advantages)
    move(policy_parameters(trainer), scale=0.1)
    gradients = gradients_at_steps(monkeypatch, trainer, "policy")
    targets = targets_of(experience, advantages=advantages, importance_weights=weights)
    metrics = trainer.update(experience, targets, step=0)
    mask = experience.response_mask
    ratio = (episode_logprobs(trainer, experience)[0] - experience.old_logprobs[mask]).exp()
    advantage = advantages[mask]
    terms = torch.where(
        advantage > 0, -advantage * torch.minimum(ratio, torch.tensor(1.2)),
        -advantage * torch.maximum(ratio, torch.tensor(0.8)),
    )  # fmt: skip
    bounded = (advantage < 0) & (ratio > 1.5)
    assert 2 <= int(bounded.sum()) < len(ratio) / 2, "the bound holds some tokens"
    if dual_clip is not None:
        terms = torch.where(bounded, -1.5 * advantage, terms)
        assert metrics["policy/dual_clip_fraction"] == pytest.approx(bounded.float().mean().item())
    else:
        assert "policy/dual_clip_fraction" not in metrics
    assert_gradients(gradients[0], (terms * weights[mask]).mean(), trainer)
    assert metrics["policy/ratio"] == pytest.approx(ratio.mean().item(), rel=1e-4)
    assert metrics["policy/approx_kl"] == pytest.approx(0.5 * ratio.log().square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("microbatch_size", [1, 8])
def test_the_entropy_bonus_has_its_gradient(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, microbatch_size: int
) -> None:
    settings = {**ONE_STEP, "microbatch_size": microbatch_size, "rollout": {"temperature": 0.7}}
    trainer = make(ppo_config(entropy_coef=0.4, **settings))
    experience = made_up_experience(trainer, LENGTHS)
    gradients = gradients_at_steps(monkeypatch, trainer, "policy")
    advantages = random_advantages(experience)
    metrics = trainer.update(experience, targets_of(experience, advantages=advantages), step=0)
    logprobs, entropy = episode_logprobs(trainer, experience)
    mask = experience.response_mask
    surrogate = -(advantages[mask] * (logprobs - experience.old_logprobs[mask]).exp()).mean()
    assert_gradients(gradients[0], surrogate - 0.4 * entropy.mean(), trainer)
    assert metrics["policy/entropy_bonus"] == pytest.approx(entropy.mean().item(), rel=1e-5)
    assert metrics["policy/loss"] == pytest.approx((surrogate - 0.4 * entropy.mean()).item(), rel=1e-4)


def test_the_entropy_bonus_raises_the_entropy(make: MakeTrainer) -> None:
    found = {}
    for coefficient in (0.0, 1.0):
        trainer = make(ppo_config(entropy_coef=coefficient, rollout={"temperature": 0.4}))
        experience = made_up_experience(trainer, LENGTHS)
        for step in range(3):
            metrics = trainer.update(experience, targets_of(experience), step=step)
        assert ("policy/entropy_bonus" in metrics) == (coefficient > 0)
        found[coefficient] = episode_logprobs(trainer, experience)[1].mean().item()
    assert found[1.0] > found[0.0] + 0.1


@pytest.mark.parametrize("microbatch_size", [1, 2, 8])
def test_checklist_43_demonstrations_count_by_their_tokens(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, microbatch_size: int
) -> None:
    """At temperature 1, whatever the responses are sampled at: that is how SFT takes its loss."""
    settings = {**ONE_STEP, "microbatch_size": microbatch_size}
    trainer = make(ppo_config(ptx_coef=0.6, rollout={"temperature": 2.0}, **settings), demonstrations=DEMONSTRATIONS)
    experience = made_up_experience(trainer, LENGTHS)
    gradients = gradients_at_steps(monkeypatch, trainer, "policy")
    metrics = trainer.update(experience, targets_of(experience), step=0)
    trainer.config = ppo_config(rollout={"temperature": 1.0})
    chosen = [DEMONSTRATIONS[row] for row in batch_rows(16, 8, 0, seed=derive_seed(5, "demonstrations", 0))]
    assert len({len(response) for _, response in chosen}) > 2
    logprobs = token_logprobs(log_softmax(trainer, chosen), [response for _, response in chosen])
    assert_gradients(gradients[0], -0.6 * logprobs.mean(), trainer)
    assert metrics["policy/ptx_loss"] == pytest.approx(-logprobs.mean().item(), rel=1e-5)
    assert metrics["policy/loss"] == 0.0


def test_every_demonstration_comes_once_before_any_comes_again(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(ppo_config(ptx_coef=0.1), demonstrations=DEMONSTRATIONS)
    experience = made_up_experience(trainer, LENGTHS)
    calls = spy(monkeypatch, PPOModels, "collate_ids")
    for step in range(2):
        trainer.update(experience, targets_of(experience), step=step)
    seen = [DEMONSTRATIONS.index(row) for args, _, _ in calls for row in args[1] if row in DEMONSTRATIONS]
    # Two steps of two epochs of two minibatches of four: twice all sixteen, in another order.
    assert sorted(seen[:16]) == sorted(seen[16:]) == list(range(16))
    assert seen[:16] != seen[16:]


def test_demonstrations_become_likelier(make: MakeTrainer) -> None:
    found = {}
    for coefficient in (0.0, 1.0):
        trainer = make(ppo_config(ptx_coef=coefficient), demonstrations=DEMONSTRATIONS)
        experience = made_up_experience(trainer, LENGTHS)
        for step in range(3):
            metrics = trainer.update(experience, targets_of(experience), step=step)
        assert ("policy/ptx_loss" in metrics) == (coefficient > 0)
        everything = log_softmax(trainer, DEMONSTRATIONS)
        found[coefficient] = token_logprobs(everything, [response for _, response in DEMONSTRATIONS]).mean().item()
    assert found[1.0] > found[0.0] + 0.3


def test_the_value_loss_reaches_the_critic_with_its_coefficient(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(ppo_config(value_coef=0.3, value_clip_range=0.05, **ONE_STEP))
    experience = made_up_experience(trainer, LENGTHS)
    base, head = trainer.models.shared_base, trainer.models.value_head
    assert experience.values is not None and head is not None
    returns = (experience.values + random_advantages(experience)) * experience.response_mask
    parameters = [*base.parameters("critic"), *head.parameters()]
    move(parameters, scale=0.02)
    gradients = gradients_at_steps(monkeypatch, trainer, "critic")
    metrics = trainer.update(experience, targets_of(experience, returns=returns), step=0)
    values = []
    with base.role("critic"):
        for rollout in experience.rollouts:
            ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
            states = base.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))
            values.append(head(states)[0, len(rollout.prompt_ids) - 1 : -1])
    new, mask = torch.cat(values), experience.response_mask
    old, target = experience.values[mask], returns[mask]
    clipped = torch.minimum(torch.maximum(new, old - 0.05), old + 0.05)
    errors = torch.stack([(new - target) ** 2, (clipped - target) ** 2])
    loss = 0.5 * errors.max(dim=0).values.mean()
    assert 0 < metrics["value/clip_fraction"] < 1
    assert metrics["value/loss"] == pytest.approx(loss.item(), rel=1e-4)
    for found, wanted in zip(gradients[0], torch.autograd.grad(0.3 * loss, parameters), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_an_update_stops_before_the_step_that_would_go_too_far(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(limit: float | None) -> tuple[PPOTrainer, list[dict[str, float]], list[list[Tensor]], dict[str, float]]:
        trainer = make(ppo_config(max_approx_kl=limit))
        experience = made_up_experience(trainer, LENGTHS)
        advantages = random_advantages(experience)
        states: list[list[Tensor]] = []
        calls = spy(monkeypatch, trainer.update, "_minibatch")
        original = trainer.update._policy.finish
        monkeypatch.setattr(
            trainer.update._policy, "finish",
            lambda *, apply: (original(apply=apply), states.append(snapshot(trained(trainer))))[0],
        )  # fmt: skip
        metrics = trainer.update(experience, targets_of(experience, advantages=advantages), step=0)
        assert all(weight.grad is None for weight in trained(trainer))
        return trainer, [call[2][0] for call in calls], states, metrics

    trainer, rows, _, metrics = update(None)
    assert metrics["policy/updates"] == len(rows) == 4
    moved = [row["policy/approx_kl"] for row in rows]
    assert moved[0] < moved[1] < moved[2]
    # At the limit is not beyond it: the third minibatch is the first that is.
    trainer, rows, states, metrics = update(moved[1])
    assert [row["policy/approx_kl"] for row in rows] == moved[:3]
    assert metrics["policy/updates"] == 2.0
    assert metrics["policy/approx_kl"] == pytest.approx(sum(moved[:3]) / 3)
    assert metrics["policy/grad_norm"] == pytest.approx(sum(row["policy/grad_norm"] for row in rows) / 3)
    policy = policy_parameters(trainer)
    assert same(states[1][: len(policy)], policy) and not same(states[0][: len(policy)], policy)
    steps = {role: optimizer(trainer, role).state_dict()["state"][0]["step"].item() for role in ("policy", "critic")}
    assert steps == {"policy": 2, "critic": 2}
    assert trainer.bad_steps.count == 0


def test_the_schedule_goes_on_by_the_number_of_the_update_after_an_early_stop(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(ppo_config(max_approx_kl=1e-8))
    experience = made_up_experience(trainer, LENGTHS)
    targets = targets_of(experience, advantages=random_advantages(experience))
    adam, rates = optimizer(trainer, "policy"), []
    original = adam.step
    monkeypatch.setattr(adam, "step", lambda: (rates.append(adam.param_groups[0]["lr"]), original())[1])
    assert trainer.update(experience, targets, step=0)["policy/updates"] == 1.0
    experience = made_up_experience(trainer, LENGTHS)  # old log-probabilities of the policy as it is now
    assert trainer.update(experience, targets, step=1)["policy/updates"] == 1.0
    # The second step starts at update 4 of 12, though one alone was made before.
    assert rates == pytest.approx([0.01, 0.01 * 8 / 12])
