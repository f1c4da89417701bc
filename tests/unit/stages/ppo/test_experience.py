"""Experience: rows in the rollouts' order whatever the microbatches, zeros on padding, one temperature for all."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.models.scalar_head import ScoreNormalization, ValueHead
from stages.models.shared_base import SharedBase
from stages.models.tuning import score_weight
from stages.ppo.experience import Experience, collect_experience
from stages.ppo.passes import PPOModels
from stages.rollouts.contract import Rollout
from tests.unit.stages.parts import PAD, FoldersOf, all_roles, random_rows
from tests.unit.stages.ppo.trainers import ppo_config

PROMPTS = random_rows([5, 2, 8, 1], seed=51)
RESPONSES = random_rows([4, 7, 1, 2], seed=52)
ROLLOUTS = [
    Rollout(tuple(prompt), tuple(response), tuple(-0.5 * (n + 1) for n in range(len(response))), True)
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
]


@pytest.fixture(scope="module")
def models(folders: FoldersOf) -> PPOModels:
    """Give all roles, with a policy that has moved off its reference."""
    own = folders("llama")
    shared = all_roles(own)
    with torch.no_grad():
        for parameter in shared.parameters("policy"):
            parameter.mul_(1.5)
    return PPOModels(shared, ValueHead.from_score_head(score_weight(own.reward), ScoreNormalization(0.1, 2.0)), PAD)


def _collect(models: PPOModels, rollouts: list[Rollout], microbatch_size: int) -> Experience:
    config = ppo_config(microbatch_size=microbatch_size, rollout={"temperature": 0.8})
    return collect_experience(rollouts, models, config)[0]


def _tensors(experience: Experience) -> dict[str, Tensor]:
    return {f.name: getattr(experience, f.name) for f in fields(experience) if f.name != "rollouts"}


def test_checklist_43_experience_does_not_depend_on_the_microbatches(models: PPOModels) -> None:
    expected = _tensors(_collect(models, ROLLOUTS, 1))
    for size in (2, 4):
        for name, found in _tensors(_collect(models, ROLLOUTS, size)).items():
            torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-5)


def test_each_row_is_its_rollout_alone_and_padding_is_zero(models: PPOModels) -> None:
    together = _collect(models, ROLLOUTS, 4)
    assert together.response_mask.sum(dim=1).tolist() == [4, 7, 1, 2]
    for row, rollout in enumerate(ROLLOUTS):
        alone = _tensors(_collect(models, [rollout], 1))
        for name, found in _tensors(together).items():
            length = len(rollout.response_ids)
            torch.testing.assert_close(found[row, :length], alone[name][0], rtol=0, atol=1e-5)
            assert not found[row, length:].any(), name
    assert together.rollout_logprobs[2, 0] == -0.5
    assert not torch.allclose(together.old_logprobs, together.ref_logprobs, atol=1e-2)
    assert not any(tensor.requires_grad for tensor in _tensors(together).values())


def test_checklist_39_values_are_those_before_each_token(models: PPOModels) -> None:
    found = _collect(models, ROLLOUTS, 4).values
    shared: SharedBase = models.shared_base
    ids = torch.tensor([PROMPTS[0] + RESPONSES[0]])
    with torch.no_grad(), shared.role("critic"):
        states = shared.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))
        expected = models.value_head(states)[0]
    start = len(PROMPTS[0]) - 1  # the state that has seen the prompt alone
    torch.testing.assert_close(found[0, :4], expected[start : start + 4], rtol=0, atol=1e-5)


def test_checklist_17_policy_and_reference_get_the_sampling_temperature(
    models: PPOModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def spied(original: Callable[..., Any]) -> Callable[..., Any]:
        def spy(self: SharedBase, batch: Any, *, temperature: float, **settings: Any) -> Any:
            seen.append(temperature)
            return original(self, batch, temperature=temperature, **settings)

        return spy

    for name in ("response_logprobs", "training_logprobs"):
        monkeypatch.setattr(SharedBase, name, spied(getattr(SharedBase, name)))
    _collect(models, ROLLOUTS, 2)
    assert seen == [0.8] * 4


@pytest.mark.parametrize("name", ["rollout_logprobs", "old_logprobs", "ref_logprobs", "entropy", "values"])
def test_checklist_49_one_number_that_is_none_shows_wherever_it_is(models: PPOModels, name: str) -> None:
    experience = _collect(models, ROLLOUTS, 4)
    assert experience.is_finite() and replace(experience, values=None).is_finite()
    for number in (math.nan, math.inf):
        broken = getattr(experience, name).clone()
        broken[1, 2] = number
        assert not replace(experience, **{name: broken}).is_finite()
