"""Advantages of each estimator on a whole step, beside float64 loops; no critic where there is none."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rewards.contract import Episode
from stages.ppo import trainer as trainer_module
from stages.ppo.config import PPOConfig
from stages.rollouts.contract import Rollout
from tests.unit.stages.parts import same, snapshot
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, learners, ppo_config, spy, trained

GROUPED = [PROMPTS[0]] * 4 + [PROMPTS[2]] * 4
WITHOUT_CRITIC = ("rloo", "grpo", "reinforce_plus_plus")


def _config(estimator: str, **settings: Any) -> PPOConfig:
    return ppo_config(advantage_estimator=estimator, responses_per_prompt=4, kl_coef=0.3, **settings)


def _uneven(rollout: Rollout) -> Rollout:
    length = 1 + sum(rollout.response_ids) % len(rollout.response_ids)
    return replace(rollout, response_ids=rollout.response_ids[:length], logprobs=rollout.logprobs[:length])


def _scores(episodes: Sequence[Episode]) -> list[float]:
    return [math.sin(sum(episode.response_ids)) for episode in episodes]


def _gae(rewards: list[float], values: list[float], gamma: float, decay: float) -> list[float]:
    found, after, value_after = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        after = reward + gamma * value_after - value + gamma * decay * after
        value_after = value
        found.append(after)
    return found[::-1]


def _reference(estimator: str, rewards: list[list[float]], values: list[list[float]]) -> list[list[float]]:
    """Advantages before whitening, in Python's floats; responses of a prompt are the rows 0-3 and 4-7."""
    if estimator == "gae":
        return [_gae(row, value, 0.9, 0.7) for row, value in zip(rewards, values, strict=True)]
    if estimator == "reinforce_plus_plus":
        return [[sum(0.9**n * r for n, r in enumerate(row[t:])) for t in range(len(row))] for row in rewards]
    returns = [sum(row) for row in rewards]
    found = []
    for row, own in enumerate(returns):
        group = returns[row // 4 * 4 : row // 4 * 4 + 4]
        if estimator == "rloo":
            advantage = own - (sum(group) - own) / 3
        else:
            advantage = (own - np.mean(group)) / (np.std(group, ddof=1) + 1e-4)
        found.append([float(advantage)] * len(rewards[row]))
    return found


@pytest.mark.parametrize("estimator", ["gae", *WITHOUT_CRITIC])
def test_advantages_are_those_of_a_float64_loop(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    settings = {"gae": {"gamma": 0.9, "gae_lambda": 0.7}, "reinforce_plus_plus": {"gamma": 0.9}}
    trainer = make(_config(estimator, **settings.get(estimator, {})), reward=_scores, alter=_uneven, moved=True)
    calls = spy(monkeypatch, trainer, "update")
    scored = spy(monkeypatch, trainer_module, "step_metrics")
    trainer.step(GROUPED)
    (experience, targets), scores = calls[0][0], scored[0][0][1].tolist()
    lengths = [len(rollout.response_ids) for rollout in experience.rollouts]
    assert len(set(lengths)) > 2 and len(set(scores)) == 8

    def rows(tensor: Any) -> list[list[float]]:
        return [row[:length] for row, length in zip(tensor.tolist(), lengths, strict=True)]

    rewards = [
        [-0.3 * (old - ref) for old, ref in zip(*pair, strict=True)]
        for pair in zip(rows(experience.old_logprobs), rows(experience.ref_logprobs), strict=True)
    ]
    for row, score in zip(rewards, scores, strict=True):
        row[-1] += score
    has_critic = estimator == "gae"
    values = rows(experience.values) if has_critic else []
    expected = _reference(estimator, rewards, values)
    if has_critic:
        returns = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(expected, values, strict=True)]
        for found, wanted in zip(rows(targets.returns), returns, strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)
    else:
        assert targets.returns is None and experience.values is None
    if estimator in ("gae", "reinforce_plus_plus"):
        flat = [value for row in expected for value in row]
        expected = [[(value - np.mean(flat)) / np.std(flat) for value in row] for row in expected]
    for found, wanted in zip(rows(targets.advantages), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)  # float32 on one side, whitened by a deviation below 1
    assert not targets.advantages[~experience.response_mask].any()


@pytest.mark.parametrize("estimator", WITHOUT_CRITIC)
def test_without_a_critic_nothing_is_valued(make: MakeTrainer, estimator: str) -> None:
    trainer = make(_config(estimator))
    critic = trainer.models.shared_base.parameters("critic")  # of the other tests; no stage loads it
    before, own = snapshot(critic), snapshot(trained(trainer))
    assert trainer.models.value_head is None and learners(trainer).keys() == {"policy"}
    metrics = trainer.step(GROUPED)
    assert not [name for name in metrics if name.startswith("value/")]
    assert all(math.isfinite(value) for value in metrics.values()) and metrics["policy/updates"] == 4.0
    assert same(before, critic) and not same(own, trained(trainer))


def test_responses_to_one_prompt_stand_together_and_differ(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(_config("rloo"))
    calls = spy(monkeypatch, trainer, "update")
    trainer.step(GROUPED)
    rollouts = calls[0][0][0].rollouts
    assert [rollout.prompt_ids for rollout in rollouts] == [tuple(prompt) for prompt in GROUPED]
    assert len({rollout.response_ids for rollout in rollouts[:4]}) == 4
    assert len({rollout.response_ids for rollout in rollouts[4:]}) == 4
