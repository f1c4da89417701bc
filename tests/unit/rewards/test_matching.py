"""Patterns and reference answers, on texts judged by hand."""

from typing import Any

import pytest

from data.errors import ConfigError, StageError
from rewards.contract import Episode
from rewards.matching import ExactMatchReward, RegexReward
from rewards.rule_config import ExactMatchRewardConfig, RegexRewardConfig


def episode(text: str, reference: str | None = None) -> Episode:
    return Episode("x", text, (1,), (2,), "x", True, reference)


def regex_score(text: str, pattern: str, **settings: Any) -> float:
    return RegexReward(RegexRewardConfig(pattern=pattern, **settings))([episode(text)])[0]


def is_right(text: str, reference: str | None, **settings: Any) -> bool:
    return ExactMatchReward(ExactMatchRewardConfig(**settings))([episode(text, reference)]) == [1.0]


@pytest.mark.parametrize(
    ("text", "search", "full", "count"),
    [
        ("4", 1, 1, 1), ("4 and 42", 1, 0, 2), ("", 0, 0, 0), ("four", 0, 0, 0),
        ("\u7b54\u6848\u662f42\u3002", 1, 0, 1), ("\uff14", 1, 1, 1),
    ],
)  # fmt: skip
def test_regex(text: str, search: int, full: int, count: int) -> None:
    found = [regex_score(text, r"\d+", match=match) for match in ("search", "full", "count")]
    assert found == [search, full, count]


def test_flags_stand_in_the_pattern() -> None:
    assert regex_score("YES", "yes") == 0.0 and regex_score("YES", "(?i)yes") == 1.0
    assert regex_score("a\nb", "a.b") == 0.0 and regex_score("a\nb", "(?s)a.b") == 1.0


def test_a_pattern_that_wanders_ends_the_stage_and_is_named() -> None:
    pattern = r"(?:(?:x+)+)+y"
    slow = RegexReward(RegexRewardConfig(name="tidy", pattern=pattern, timeout_seconds=0.05))
    with pytest.raises(StageError, match=r"^ppo\.rewards\[tidy\]: the pattern .* took longer than 0\.05 s on the resp"):
        for number in range(20, 4000, 20):
            slow([episode("x" * number + "z")])
    extract = ExactMatchReward(ExactMatchRewardConfig(extract=r"((?:(?:x+)+)+)y", timeout_seconds=0.05))
    with pytest.raises(
        StageError, match=r"ppo\.rewards\[exact_match\]: the pattern .*avoid repetitions within repetit"
    ):
        for number in range(20, 4000, 20):
            extract([episode("x" * number + "z", "x")])


@pytest.mark.parametrize(("pattern", "told"), [("(a", "missing"), ("[", "unterminated"), ("a{3,1}", "min repeat")])
def test_a_pattern_that_is_none_is_the_users_fault(pattern: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"ppo\.rewards\[regex\]\.pattern=.*: no regular expression \(.*{told}"):
        regex_score("", pattern)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("Paris", "Paris", True),
        ("  paris\n", "Paris", True),
        ("New   York", "new york", True),
        ("Paris.", "Paris", False),
        ("It is Paris", "Paris", False),
        ("", "Paris", False),
        ("Paris", None, False),
        ("", "", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("\uff14\uff12", "42", True),
        ("STRASSE", "stra\u00dfe", True),
        ("\u5317\u4eac", "\u5317\u4eac", True),
        ("\u5317\u4eac\u3002", "\u5317\u4eac", False),
    ],
)
def test_exact_match(text: str, reference: str | None, expected: bool) -> None:
    assert is_right(text, reference) == expected


def test_case_and_punctuation_count_as_the_configuration_says() -> None:
    assert not is_right("paris", "Paris", ignore_case=False)
    assert is_right("\uff14\uff12", "42", ignore_case=False)
    assert is_right('"Paris."', "Paris", ignore_punctuation=True)
    assert is_right("\u5317\u4eac\u3002", "\u5317\u4eac", ignore_punctuation=True)


def test_the_answer_is_the_last_match() -> None:
    tagged = {"extract": "(?s)<answer>(.*?)</answer>"}
    assert is_right("<think>5?</think><answer>5</answer> no, <answer>\n4 </answer>", "4", **tagged)
    assert not is_right("<answer>4</answer><answer>5</answer>", "4", **tagged)
    assert not is_right("4", "4", **tagged)
    assert not is_right("nothing", "", **tagged), "no answer is not an empty one"


@pytest.mark.parametrize(("extract", "number"), [("answer", 0), ("(a)(b)", 2)])
def test_an_answer_is_one_group(extract: str, number: int) -> None:
    with pytest.raises(ConfigError, match=rf"\.extract=.*: it has {number} groups, but 1 is needed"):
        is_right("", "", extract=extract)
