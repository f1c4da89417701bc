"""What is not finite is skipped and counted; a KL that stays negative is named."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from data.errors import StageError
from rewards.contract import Episode
from stages.ppo import update as update_module
from tests.unit.stages.parts import same, snapshot
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, even_share, ppo_config, trained


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


@pytest.mark.parametrize("which", ["ppo_policy_loss", "ppo_value_loss"])
def test_checklist_49_one_minibatch_alone_is_skipped(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, which: str
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
    trainer.step(PROMPTS)
    # Four minibatches of two microbatches each; the third microbatch belongs to the second minibatch.
    assert trainer.bad_steps.count == 1
    assert [same(states[n], states[n + 1]) for n in range(3)] == [True, False, False]
