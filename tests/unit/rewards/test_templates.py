"""Templates, on texts that fit and on texts that nearly do."""

import time

import pytest

from rewards.contract import Episode
from rewards.rule_config import CountTemplateConfig, FormatRewardConfig, JsonTemplateConfig, TagsTemplateConfig
from rewards.templates import FormatReward, count_of, fits

THINK = TagsTemplateConfig(names=["think", "answer"])


@pytest.mark.parametrize(
    ("text", "is_json", "has_keys"),
    [
        ('{"answer": 4, "why": null}', True, True),
        ('\n {"why": "", "answer": "\u56db", "more": []} \n', True, True),
        ('{"answer": 4}', True, False),
        ('{"inner": {"answer": 4, "why": 1}}', True, False),
        ("[1, 2]", True, False),
        ('"answer why"', True, False),
        ("4", True, False),
        ("", False, False),
        ('{"answer": 4', False, False),
        ('Sure: {"answer": 4, "why": 1}', False, False),
        ('```json\n{"answer": 4, "why": 1}\n```', False, False),
        ('{"answer": NaN, "why": 1}', False, False),
        ("{'answer': 4, 'why': 1}", False, False),
        ("[" * 100_000, False, False),
        ("1" * 5000, False, False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json(text: str, is_json: bool, has_keys: bool) -> None:
    assert fits(text, JsonTemplateConfig()) == is_json
    assert fits(text, JsonTemplateConfig(keys=["answer", "why"])) == has_keys


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>why</think><answer>4</answer>", True),
        ("  <think>\nwhy\n</think>\n\n<answer>\u56db</answer>\n", True),
        ("<think></think><answer></answer>", True),
        ("<think>a < b</think><answer><b>4</b></answer>", True),
        ("", False),
        ("<think>why</think>", False),
        ("<answer>4</answer><think>why</think>", False),
        ("Well. <think>why</think><answer>4</answer>", False),
        ("<think>why</think> so <answer>4</answer>", False),
        ("<think>why</think><answer>4</answer> Done.", False),
        ("<think>why</think><answer>4</answer><answer>5</answer>", False),
        ("<think><answer>4</answer></think>", False),
        ("<think>why</think><answer>4", False),
        ("<think>why</answer><answer>4</think>", False),
        ("<think>why<think></think><answer>4</answer>", False),
    ],
)
def test_tags(text: str, expected: bool) -> None:
    assert fits(text, THINK) == expected


def test_a_long_text_full_of_tags_takes_no_time() -> None:
    start = time.monotonic()
    assert not fits("<think>" * 100_000, THINK)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0), (" \n", 0), ("No stop", 1), ("One. Two! Three?", 3), ("Really?! Yes...", 2),
        ('He said "stop." Then he left.', 2), ("Version 1.5 is out.", 1), ("3.14", 1),
        ("\u4f60\u597d\u3002\u518d\u89c1\uff01", 2), ("\u4f60\u597d\u3002\u518d\u89c1", 2),
        ("\u300c\u597d\u3002\u300d\u4ed6\u8bf4\u3002", 2),
    ],
)  # fmt: skip
def test_sentences(text: str, sentences: int) -> None:
    assert count_of(text, "sentences") == sentences


def test_bullets_lines_and_paragraphs() -> None:
    text = "Here:\n- one\n  * two\n1. three\n2) four\n\n\u2022 \u4e94\n-\n-six\n1990 was a year\n \t\nThe end."
    assert count_of(text, "bullets") == 5
    assert count_of(text, "lines") == 10
    assert count_of(text, "paragraphs") == 3
    assert [count_of("", what) for what in ("bullets", "lines", "paragraphs")] == [0, 0, 0]


def test_bounds_are_inclusive() -> None:
    def found(text: str, **bounds: int) -> bool:
        return fits(text, CountTemplateConfig(of="sentences", **bounds))

    assert [found("A. B.", minimum=n) for n in (1, 2, 3)] == [True, True, False]
    assert [found("A. B.", maximum=n) for n in (1, 2, 3)] == [False, True, True]
    assert found("A. B.", minimum=2, maximum=2) and not found("", minimum=1)


def test_a_fit_is_1() -> None:
    reward = FormatReward(FormatRewardConfig(template=THINK))
    texts = ("<think>a</think><answer>b</answer>", "b")
    assert reward([Episode("", text, (1,), (2,), "", True) for text in texts]) == [1.0, 0.0]
