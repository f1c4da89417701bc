"""What is not finite is skipped and counted; a KL that stays negative is named."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.errors import StageError
from rewards.contract import Episode
from stages.ppo import update as update_module
from stages.ppo.config import PPOConfig
from stages.rollouts.contract import PolicyVersion
from tests.unit.stages.parts import same, snapshot
from tests.unit.stages.ppo.trainers import (
    PROMPTS,
    MakeTrainer,
    even_share,
    move,
    optimizer,
    policy_parameters,
    ppo_config,
    trained,
)


def test_checklist_49_batches_that_are_not_finite_are_skipped_counted_and_end_the_stage(
    make: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [True, False, True, True]

    def reward(episodes: Sequence[Episode]) -> list[float]:
        scores = even_share(episodes)
        return [math.nan, *scores[1:]] if broken.pop(0) else scores

    config = ppo_config(
        minibatch_size=8, num_ppo_epochs=1, max_bad_steps=1, steps=9, normalize_scores=True,
        kl_controller={"type": "adaptive", "target": 1.0, "horizon": 100},
    )  # fmt: skip
    trainer = make(config, reward=reward)
    before = snapshot(trained(trainer))
    with caplog.at_level(logging.WARNING):
        metrics = trainer.step(PROMPTS)
    assert "step 1: scores not finite; batch skipped" in caplog.text
    assert metrics["train/bad_steps"] == 1.0 and "policy/loss" not in metrics
    assert same(before, trained(trainer)) and trainer.bad_steps.count == 1 and trainer.num_steps == 1
    assert trainer.score_shaper.num_scores == 0 and trainer.kl_controller.value == config.kl_coef
    assert all(weight.grad is None for weight in trained(trainer))
    trainer.step(PROMPTS)
    assert trainer.bad_steps.count == 1 and not same(before, trained(trainer))
    before = snapshot(trained(trainer))
    with pytest.raises(StageError, match=r"2 batches or updates were not finite \(scores\).*max_bad_steps=1; lower"):
        trainer.step(PROMPTS)
    assert same(before, trained(trainer))
    assert all(bool(weight.isfinite().all()) for weight in before)


def test_checklist_49_a_batch_with_broken_logprobs_is_skipped(make: MakeTrainer) -> None:
    trainer = make(alter=lambda rollout: replace(rollout, logprobs=(math.nan,) * len(rollout.logprobs)))
    before = snapshot(trained(trainer))
    assert "policy/loss" not in trainer.step(PROMPTS)
    assert same(before, trained(trainer)) and trainer.bad_steps.count == 1


@pytest.mark.parametrize(("which", "name"), [("ppo_policy_loss", "policy/loss"), ("ppo_value_loss", "value/loss")])
def test_checklist_49_one_minibatch_alone_is_skipped(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, which: str, name: str
) -> None:
    original, calls = getattr(update_module, which), []

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        result = original(*args, **kwargs)
        return result._replace(loss=result.loss * math.inf) if len(calls) == 3 else result

    monkeypatch.setattr(update_module, which, poisoned)
    trainer = make()
    states = []
    original_minibatch = trainer.update._minibatch

    def remember(*args: Any) -> Any:
        row = original_minibatch(*args)
        states.append(snapshot(trained(trainer)))
        return row

    monkeypatch.setattr(trainer.update, "_minibatch", remember)
    with caplog.at_level(logging.WARNING):
        metrics = trainer.step(PROMPTS)
    assert caplog.messages == [f"step 1: {name} not finite; update skipped"]
    assert metrics["policy/updates"] == 3.0 and not math.isfinite(metrics[name])
    # Four minibatches of two microbatches each; the third microbatch belongs to the second minibatch.
    assert trainer.bad_steps.count == 1
    assert [same(states[n], states[n + 1]) for n in range(3)] == [True, False, False]


class InfiniteGradient(torch.autograd.Function):
    """Leaves a loss as it is, and makes its gradient infinite."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        """The loss as it is."""
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As a square root has at 0."""
        return gradient * math.inf


@pytest.mark.parametrize(("which", "role"), [("ppo_policy_loss", "policy"), ("ppo_value_loss", "critic")])
def test_checklist_49_an_infinite_gradient_alone_is_skipped(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, which: str, role: str
) -> None:
    """The losses are finite, so that only the norm tells; neither weights nor Adam's moments may see it."""
    original = getattr(update_module, which)

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return result._replace(loss=InfiniteGradient.apply(result.loss))

    trainer = make(ppo_config(num_ppo_epochs=1, minibatch_size=8, max_bad_steps=1))
    trainer.step(PROMPTS)
    adam = optimizer(trainer, role)
    moved = [weight for group in adam.param_groups for weight in group["params"]]
    state = [moment for weight in moved for moment in adam.state[weight].values()]
    before, moments = snapshot(moved), snapshot(state)
    monkeypatch.setattr(update_module, which, poisoned)
    with caplog.at_level(logging.WARNING):
        metrics = trainer.step(PROMPTS)
    assert f"step 2: {'value' if role == 'critic' else role}/grad_norm not finite; update skipped" in caplog.text
    assert math.isfinite(metrics["policy/loss"]) and metrics["policy/updates"] == 0.0
    assert metrics["train/bad_steps"] == 1.0
    assert same(before, moved) and same(moments, state)
    assert all(weight.grad is None for weight in trained(trainer))


def _still(**rollout: Any) -> PPOConfig:
    """Steps of many episodes that as good as leave the policy where it is."""
    sizes = {"batch_size": 32, "minibatch_size": 32, "microbatch_size": 32, "num_ppo_epochs": 1}
    return ppo_config(steps=5, learning_rate=1e-9, kl_coef=0.0, rollout=rollout, **sizes)


def test_checklist_31_an_engine_that_samples_another_policy_is_diagnosed(
    make: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays with the reference while the policy has moved: what k1 measures then is -KL(reference, policy)."""
    trainer = make(_still(max_logprob_delta_rms=99.0))
    move(policy_parameters(trainer), scale=0.25)
    trainer.rollout_engine.load_policy("reference")
    trainer.rollout_engine.load_policy = lambda role: PolicyVersion(1)  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        rows = [trainer.step(PROMPTS * 4) for _ in range(4)]
    assert all(row["objective/kl"] < -3 * row["objective/kl_stderr"] for row in rows)
    assert [row["diagnosis/negative_kl"] for row in rows] == [0.0, 0.0, 1.0, 1.0]
    assert [message for message in caplog.messages if "negative" in message] == [
        message for message in caplog.messages if message.startswith("step 3: the KL of policy and reference was")
    ]
    assert len(caplog.messages) == 1


def test_checklist_31_samples_of_the_policy_itself_are_not(make: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    """Neither near the reference, where the estimate is noise of both signs, nor far from it."""
    for scale in (0.01, 0.25):
        trainer = make(_still())
        move(policy_parameters(trainer), scale=scale)
        with caplog.at_level(logging.WARNING):
            rows = [trainer.step(PROMPTS * 4) for _ in range(5)]
        assert not any(row["diagnosis/negative_kl"] for row in rows)
        assert scale > 0.1 or any(row["objective/kl"] < 0 for row in rows)
    assert not caplog.messages
