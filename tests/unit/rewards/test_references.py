"""Prompts without an answer, and with two."""

import pytest

from data.errors import DataError
from data.schema import Message, PromptRecord
from rewards.composite_config import LearnedRewardConfig
from rewards.references import check_references
from rewards.rule_config import ExactMatchRewardConfig, MathRewardConfig

RIGHT = [PromptRecord(prompt="2 + 2", reference="4"), PromptRecord(prompt="1 + 1", reference="2")]


def test_who_asks_for_no_reference_needs_none() -> None:
    check_references([LearnedRewardConfig()], [PromptRecord(prompt="Hello")])
    check_references([LearnedRewardConfig(), ExactMatchRewardConfig(), MathRewardConfig()], RIGHT)


def test_prompts_without_a_reference_are_counted() -> None:
    with pytest.raises(DataError) as caught:
        check_references([LearnedRewardConfig(), MathRewardConfig(name="sums")], [*RIGHT, PromptRecord(prompt="Hello")])
    assert str(caught.value) == (
        "data.prompts: 1 of 3 prompts to train on have no `reference`; ppo.rewards[sums] needs the right answer to "
        "each: name the column that holds them (`data.prompts.columns: {reference: answer}`), leave these prompts out, "
        "or remove the component"
    )


def test_one_prompt_with_two_references_is_named() -> None:
    turns = (Message(role="user", content=" 2 + 2"),)
    with pytest.raises(DataError, match=r"the prompt ' 2 \+ 2' is there with two references, '4' and '5'; .* need the"):
        check_references(
            [ExactMatchRewardConfig(), MathRewardConfig()], [*RIGHT, PromptRecord(prompt=turns, reference="5")]
        )
    check_references([MathRewardConfig()], [*RIGHT, PromptRecord(prompt=turns, reference="4")])
