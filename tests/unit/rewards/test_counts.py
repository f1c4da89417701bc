"""Length and repetition, counted by hand."""

from typing import Any

import pytest

from rewards.contract import Episode
from rewards.counts import LengthReward, RepetitionReward, repeated_share
from rewards.rule_config import LengthRewardConfig, RepetitionRewardConfig


def episode(text: str, *ids: int) -> Episode:
    return Episode("a prompt of no interest", text, (1, 2, 3), ids, "", True)


def length(found: Episode, **settings: Any) -> float:
    return LengthReward(LengthRewardConfig(**settings))([found])[0]


def repetition(found: Episode, **settings: Any) -> float:
    return RepetitionReward(RepetitionRewardConfig(**settings))([found])[0]


@pytest.mark.parametrize(
    ("text", "words", "characters"),
    [
        ("", 0, 0),
        ("  two  words\n", 2, 13),
        ("\u4f60\u597d\u4e16\u754c", 1, 4),
        ("caf\u00e9 \U0001f600", 2, 6),
        ("cafe\u0301", 1, 5),
    ],
)
def test_length(text: str, words: int, characters: int) -> None:
    found = episode(text, 9, 9, 2)
    assert length(found) == 3.0, "tokens, the EOS included"
    assert length(found, unit="words") == words and length(found, unit="characters") == characters


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"minimum": 2}, [-1.0, 0.0, 0.0, 0.0]),
        ({"maximum": 3}, [0.0, 0.0, 0.0, -2.0]),
        ({"minimum": 2, "maximum": 3}, [-1.0, 0.0, 0.0, -2.0]),
        ({"minimum": 3, "maximum": 3}, [-2.0, -1.0, 0.0, -2.0]),
        ({"maximum": 0}, [-1.0, -2.0, -3.0, -5.0]),
    ],
)
def test_length_beyond_bounds_costs_its_distance(bounds: dict[str, int], expected: list[float]) -> None:
    assert [length(episode("", *range(number)), **bounds) for number in (1, 2, 3, 5)] == expected


def test_repetition_by_hand() -> None:
    # a b a b a: ab ba ab ba; two of four again
    assert repetition(episode("a b a b a"), unit="words", ngram=2) == -0.5
    assert repetition(episode("\u597d\u597d\u597d\u597d"), unit="characters", ngram=2) == pytest.approx(-2 / 3)
    assert repetition(episode("", 7, 7, 7, 7)) == -0.5  # two trigrams, one of them again
    assert repetition(episode("", 1, 2, 3, 4)) == 0.0


@pytest.mark.parametrize("text", ["", "a", "a b"])
def test_too_short_a_response_repeats_nothing(text: str) -> None:
    assert repetition(episode(text), unit="words") == 0.0


def test_shares() -> None:
    assert repeated_share("a b a b a b".split(), 2) == pytest.approx(0.6)
    assert repeated_share("aaaa", 1) == 0.75
    assert repeated_share([], 1) == 0.0
