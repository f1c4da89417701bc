"""A model that judges: its questions, its verdicts, and a planted judge whose figures are known by arithmetic."""

from pathlib import Path
from typing import Any

import pytest

from data.errors import ConfigError, StageError
from data.questions import ask_about, read_template
from data.schema import Message
from rewards.contract import Episode
from rewards.judge import Comparison, JudgeReward, PairJudge
from rewards.judge_config import JudgeRewardConfig, PairJudgeConfig
from rewards.judge_questions import (
    PAIR_FIELDS,
    PAIR_TEMPLATE,
    read_grade,
    read_verdict,
    reminded,
    shown_prompt,
)
from tests.unit.data.test_endpoint import Model, completion, served


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Reply A is shorter and right.\n[[A]]", "first"),
        ("[[b]]", "second"),
        ("First [[A]] seemed better, but no: [[C]]", "tie"),
        ("[[ tie ]]", "tie"),
        ("I think so.\n\nVerdict: B", "second"),
        ("**A**", "first"),
        ("Final answer: Reply A.", "first"),
        ("(B)", "second"),
        ("Tie.", "tie"),
        ("A", "first"),
        ("The better one is A because it says more", None),
        ("[[D]]", None),
        ("Alpha", None),
        ("", None),
        ("A\nmore words after it", None),
        ("两个都不错", None),
    ],
)
def test_verdicts(answer: str, verdict: str | None) -> None:
    assert read_verdict(answer) == verdict


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("Good.\n[[8]]", 8.0), ("[[3]] no, [[4.5]]", 4.5), ("[[7/10]]", 7.0), ("Score: 9", 9.0),
        ("**Grade:** 2/10", 2.0),
        ("10", 10.0), ("[[11]]", None), ("[[0]]", None), ("-3", None), ("I give it eight", None), ("", None),
        ("It has 3 faults and 2 merits", None),
    ],
)  # fmt: skip
def test_grades(answer: str, grade: float | None) -> None:
    assert read_grade(answer, 1, 10) == grade


def test_a_question_is_filled_once_and_replies_keep_their_braces() -> None:
    values = {"prompt": "q {first}", "first": "{second} \\1", "second": "{x}"}
    (turn,) = ask_about("{prompt}|{first}|{second}|{other}", values)
    assert turn == Message(role="user", content="q {first}|{second} \\1|{x}|{other}")
    assert all(f"{{{name}}}" in PAIR_TEMPLATE for name in PAIR_FIELDS)
    assert (
        shown_prompt((Message(role="system", content="s"), Message(role="user", content="q"))) == "system: s\n\nuser: q"
    )
    assert [each.role for each in reminded((turn,), " ", "again")] == ["user", "assistant", "user"]


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("{prompt} {first} {second} besser?", encoding="utf-8")
    (tmp_path / "less.txt").write_text("{prompt} {first}", encoding="utf-8")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe{prompt}")
    assert read_template("t.txt", "x", PAIR_FIELDS, tmp_path, "k").endswith("besser?")
    for name, expected in (
        ("no.txt", "no file at"), ("less.txt", r"lacks \{second\}; the question has to show"),
        ("odd.txt", "cannot be read .* UTF-8 is needed"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=expected):
            read_template(name, "x", PAIR_FIELDS, tmp_path, "k")


@pytest.mark.parametrize(
    ("forward", "backward", "value", "biased"),
    [
        ("first", "first", 1.0, False), ("second", "second", 0.0, False), ("tie", "tie", 0.5, False),
        ("first", "second", 0.5, True), ("second", "first", 0.5, True), ("first", "tie", 0.5, False),
        (None, "first", None, False), ("tie", None, None, False),
    ],
)  # fmt: skip
def test_a_win_needs_both_orders(forward: Any, backward: Any, value: float | None, biased: bool) -> None:
    comparison = Comparison(forward, backward)
    assert (comparison.value, comparison.follows_position) == (value, biased)


def longer_wins(body: dict[str, Any]) -> Any:
    """A planted judge: the longer reply, and the first place where both are as long; some answers say nothing."""
    text = body["messages"][0]["content"]
    a, b = (text.split(f"<reply_{side}>\n")[1].split(f"\n</reply_{side}>")[0] for side in "ab")
    if "mumble" in text and (len(body["messages"]) == 1 or "never" in text):
        return completion("Hm.")
    return completion("[[A]]" if len(a) >= len(b) else "[[B]]")


def judge(model: Model, tmp_path: Path, **settings: Any) -> PairJudge:
    """Of the stand-in."""
    endpoint = {"address": model.address, "model": "m"}
    config = PairJudgeConfig.model_validate({"endpoint": endpoint} | settings)
    return PairJudge(config, tmp_path, tmp_path / "answers.sqlite", setting="x")


def test_both_orders_cancel_the_bias_for_a_place(tmp_path: Path) -> None:
    with served(longer_wins) as model:
        asked = judge(model, tmp_path)
        found = asked([("q", "long reply", "short"), ("q", "s", "longer"), ("q", "same", "sane"), ("q", "mumble", "x"),
                       ("never", "mumble!", "y")])  # fmt: skip
        assert found == [
            Comparison("first", "first"), Comparison("second", "second"), Comparison("first", "second"),
            Comparison("first", "first"), Comparison(None, None),
        ]  # fmt: skip
        assert [each.value for each in found] == [1.0, 0.0, 0.5, 1.0, None]
        # Ten questions, and a reminder for each of the four that were not answered.
        assert len(model.requests) == 14
        assert model.requests[-1]["messages"][-1]["content"] == "Answer with one line only: [[A]], [[B]] or [[C]]."
        asked([("q", "long reply", "short")])
        assert len(model.requests) == 14 and asked.endpoint.usage.cached == 2


def episodes(*texts: str) -> list[Episode]:
    """Responses to one prompt."""
    return [Episode("q", text, (1,), (2,), "q", True) for text in texts]


def test_grades_are_scaled_and_missing_ones_are_the_middle(tmp_path: Path) -> None:
    answers = {"good": "[[10]]", "fair": "Score: 4", "bad": "[[1]]", "odd": "no idea", "far": "[[99]]"}

    def grade(body: dict[str, Any]) -> Any:
        text = body["messages"][0]["content"].split("<reply>\n")[1].split("\n</reply>")[0]
        return completion(answers[text])

    with served(grade) as model:
        config = JudgeRewardConfig.model_validate({"endpoint": {"address": model.address, "model": "m"}})
        reward = JudgeReward(config, None, tmp_path / "a.sqlite")
        assert reward(episodes("good", "fair", "bad", "odd")) == [1.0, pytest.approx(1 / 3), 0.0, 0.5]
        assert "from 1 (worst) to 10 (best)" in model.requests[0]["messages"][0]["content"]
        with pytest.raises(StageError, match="no grade from 1 to 10 can be read from 2 of 3 answers of m; a model"):
            reward(episodes("odd", "far", "good"))
    with pytest.raises(ValueError, match="lowest=5 is not below highest=5"):
        JudgeRewardConfig.model_validate({"endpoint": {"address": "http://h", "model": "m"}, "lowest": 5, "highest": 5})
