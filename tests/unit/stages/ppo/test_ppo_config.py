"""Relations between the settings of PPO: what is refused, and in which words."""

from typing import Any

import pytest
from pydantic import ValidationError

from stages.ppo.config import PPOConfig


def _error(**settings: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        PPOConfig.model_validate(settings)
    return str(caught.value)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_estimators_that_compare_responses_need_two_of_them(estimator: str) -> None:
    assert (
        f"advantage_estimator={estimator} compares the responses to one prompt, but responses_per_prompt=1; use "
        f"responses_per_prompt=2 or more (4 is usual)"
    ) in _error(advantage_estimator=estimator)
    PPOConfig.model_validate({"advantage_estimator": estimator, "responses_per_prompt": 2})


def test_one_response_is_enough_for_the_others_and_more_are_allowed() -> None:
    for estimator in ("gae", "reinforce_plus_plus"):
        for number in (1, 4):
            PPOConfig.model_validate({"advantage_estimator": estimator, "responses_per_prompt": number})


def test_responses_to_a_prompt_are_not_torn_apart() -> None:
    found = _error(responses_per_prompt=3)
    assert "batch_size=64 is not divisible by responses_per_prompt=3; use responses_per_prompt=1, 2, 4" in found
    assert "is not divisible" in _error(batch_size=4, minibatch_size=4, microbatch_size=4, responses_per_prompt=8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gae_lambda", 0.9), ("value_coef", 0.5), ("value_clip_range", 0.1), ("critic_learning_rate", 1e-3),
        ("critic_init", "zero"),
    ],
)  # fmt: skip
def test_settings_of_the_critic_are_refused_without_one(name: str, value: Any) -> None:
    for estimator in ("rloo", "grpo", "reinforce_plus_plus"):
        assert (
            f"{name} is set, but advantage_estimator={estimator} does not use it; remove {name}, or use "
            f"advantage_estimator=gae"
        ) in _error(**{"advantage_estimator": estimator, "responses_per_prompt": 2, name: value})
    PPOConfig.model_validate({name: value})


def test_the_discount_belongs_to_the_estimators_that_go_token_by_token() -> None:
    for estimator in ("rloo", "grpo"):
        found = _error(advantage_estimator=estimator, responses_per_prompt=2, gamma=0.9)
        assert f"gamma is set, but advantage_estimator={estimator} does not use it; remove gamma" in found
    for estimator in ("gae", "reinforce_plus_plus"):
        assert PPOConfig.model_validate({"advantage_estimator": estimator, "gamma": 0.9}).gamma == 0.9


def test_defaults_written_out_are_no_settings_of_the_critic() -> None:
    PPOConfig.model_validate({"advantage_estimator": "rloo", "responses_per_prompt": 2, "gamma": 1.0})


def test_only_gae_has_a_critic_and_whitening_follows_the_papers() -> None:
    found = {}
    for estimator in ("gae", "rloo", "grpo", "reinforce_plus_plus"):
        config = PPOConfig.model_validate({"advantage_estimator": estimator, "responses_per_prompt": 2})
        found[estimator] = (config.has_critic, config.whitens_advantages)
        for whiten in (True, False):
            assert config.model_copy(update={"whiten_advantages": whiten}).whitens_advantages is whiten
    assert found == {
        "gae": (True, True), "rloo": (False, False), "grpo": (False, False), "reinforce_plus_plus": (False, True),
    }  # fmt: skip


def test_batches_are_cut_without_a_remainder() -> None:
    # The divisors of 64 that are nearest to 24, and of 32 that are nearest to 5.
    assert "batch_size=64 is not divisible by minibatch_size=24; use minibatch_size=8, 16, 32" in _error(
        minibatch_size=24, microbatch_size=24
    )
    assert "minibatch_size=32 is not divisible by microbatch_size=5; use microbatch_size=2, 4, 8" in _error(
        microbatch_size=5
    )
    assert "batch_size=64 is not divisible by minibatch_size=128" in _error(minibatch_size=128)


def test_a_dual_clip_that_would_hold_the_unchanged_policy_is_refused() -> None:
    assert "greater than 1" in _error(dual_clip=1.0)
    assert PPOConfig(dual_clip=1.5).dual_clip == 1.5
