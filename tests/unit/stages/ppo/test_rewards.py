"""What the update of a step is given: shaped scores, KL, whitening."""

from dataclasses import replace

import pytest
import torch

from stages.algorithms.masking import masked_mean, masked_var
from stages.ppo import trainer as trainer_module
from stages.rollouts.contract import Rollout
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, ppo_config, spy, zero_value_head


@pytest.mark.parametrize(
    ("settings", "last"), [({}, 2.0), ({"missing_eos_score": -1.0}, -1.0), ({"missing_eos_penalty": 0.5}, 1.5)]
)
def test_checklist_19_27_the_score_enters_once_and_a_missing_eos_costs(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, settings: dict[str, float], last: float
) -> None:
    """Every other episode ended by itself. KL is charged on every token, the score at the last one."""
    flags = [True, False] * 4

    def alter(rollout: Rollout) -> Rollout:
        length = 6 if len(flags) % 3 else 3
        cut = replace(rollout, response_ids=rollout.response_ids[:length], logprobs=rollout.logprobs[:length])
        return replace(cut, finished=flags.pop(0))

    trainer = make(ppo_config(kl_coef=0.3, **settings), reward=lambda e: [2.0] * len(e), alter=alter, moved=True)
    calls = spy(monkeypatch, trainer_module, "step_metrics")
    gae = spy(monkeypatch, trainer_module, "estimate_advantages")
    metrics = trainer.step(PROMPTS)
    (experience, _, rewards, _), mask = calls[0][0], calls[0][0][0].response_mask
    assert gae[0][0][0] is rewards
    k1 = experience.old_logprobs - experience.ref_logprobs
    assert k1.abs().max() > 0.01 and sorted(set(mask.sum(dim=1).tolist())) == [3, 6]
    expected = torch.zeros_like(k1)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        expected[row, :length] = -0.3 * k1[row, :length]
        expected[row, length - 1] += 2.0 if row % 2 == 0 else last
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-6)
    assert metrics["objective/scores"] == 2.0
    assert metrics["rollout/truncated_fraction"] == 0.5
    kl = k1.sum(dim=1).mean().item()
    assert metrics["objective/kl"] == pytest.approx(kl, abs=1e-6)
    assert metrics["objective/rewards"] == pytest.approx((2.0 + last) / 2 - 0.3 * kl, abs=1e-5)


def test_checklist_25_the_first_step_has_no_kl(make: MakeTrainer) -> None:
    trainer = make()
    assert trainer.step(PROMPTS)["objective/kl"] == 0.0
    assert abs(trainer.step(PROMPTS)["objective/kl"]) > 1e-4


def test_checklist_30_the_adaptive_coefficient_moves_after_the_step(make: MakeTrainer) -> None:
    controller = {"type": "adaptive", "target": 1e-6, "horizon": 100.0}
    trainer = make(ppo_config(kl_coef=0.5, kl_controller=controller), moved=True)
    metrics = trainer.step(PROMPTS)
    assert metrics["objective/kl"] > 0.01 and metrics["objective/kl_coef"] == 0.5
    expected = 0.5 * (1 + 0.2 * 8 / 100)
    assert trainer.kl_controller.value == pytest.approx(expected)
    assert trainer.step(PROMPTS)["objective/kl_coef"] == pytest.approx(expected)


def test_checklist_30_the_adaptive_coefficient_acts_in_the_loss_too(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = {"type": "adaptive", "target": 1e-6, "horizon": 10.0}
    config = ppo_config(
        kl_coef=0.5, kl_controller=controller, kl_placement="loss", kl_estimator="k2", num_ppo_epochs=1,
        minibatch_size=8,
    )  # fmt: skip
    trainer = make(config, reward=lambda episodes: [0.0] * len(episodes), moved=True)
    zero_value_head(trainer)  # the KL is all that the loss has
    calls = spy(monkeypatch, trainer, "update")
    rows = [trainer.step(PROMPTS) for _ in range(2)]
    for (experience, targets), row, coefficient in zip(
        [call[0] for call in calls], rows, (0.5, 0.5 * (1 + 0.2 * 8 / 10)), strict=True
    ):
        assert targets.kl_coef == pytest.approx(coefficient)
        ratio = (experience.old_logprobs - experience.ref_logprobs)[experience.response_mask]
        # The first minibatch has ratio 1; there is no second one.
        assert row["policy/loss"] == pytest.approx(coefficient * 0.5 * ratio.square().mean().item(), rel=1e-3)


def test_scores_are_normalised_and_clipped_on_their_way_to_the_rewards(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = [-9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 20.0]
    deviation = torch.tensor(raw).std(correction=0).item()
    for settings, expected in (
        ({"score_clip": 4.5}, [-4.5, 1.0, 2.0, 3.0, 4.0, 4.5, 4.5, 4.5]),
        ({"normalize_scores": True}, [score / deviation for score in raw]),
        ({"normalize_scores": True, "score_clip": 1.0}, [max(min(s / deviation, 1.0), -1.0) for s in raw]),
    ):
        trainer = make(ppo_config(kl_coef=0.0, **settings), reward=lambda episodes: list(raw))
        calls = spy(monkeypatch, trainer, "update")
        rewards = spy(monkeypatch, trainer, "_rewards")
        metrics = trainer.step(PROMPTS)
        assert len(calls) == 1
        assert rewards[0][2].sum(dim=1).tolist() == pytest.approx(expected, abs=1e-5)
        assert metrics["objective/scores"] == pytest.approx(4.0)


def test_checklist_34_35_whitening_of_rewards_and_advantages(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for advantages, rewards in ((True, False), (False, False), (False, True)):
        trainer = make(ppo_config(whiten_advantages=advantages, whiten_rewards=rewards), moved=True)
        calls = spy(monkeypatch, trainer, "update")
        shaped = spy(monkeypatch, trainer, "_rewards")
        trainer.step(PROMPTS)
        experience, targets = calls[0][0]
        used, returns = targets.advantages, targets.returns
        found[advantages, rewards] = (experience.response_mask, used, returns, shaped[0][2], experience.values)
    mask, white, returns, reward, values = found[True, False]
    assert masked_mean(white, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert masked_var(white, mask).item() == pytest.approx(1.0, abs=1e-4)
    _, raw, raw_returns, raw_reward, _ = found[False, False]
    assert torch.equal(raw_reward, reward) and torch.equal(raw_returns, returns)
    torch.testing.assert_close(raw + values, returns)  # returns come from the unwhitened advantages
    _, _, _, scaled, _ = found[False, True]
    assert masked_mean(scaled, mask).item() == pytest.approx(masked_mean(reward, mask).item(), abs=1e-6)
    assert masked_var(scaled, mask).item() == pytest.approx(1.0, abs=1e-4)
