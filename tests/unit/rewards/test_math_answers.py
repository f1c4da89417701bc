"""Answers that are equal, that are not, and that would compute for ever."""

from collections.abc import Iterator
from typing import Any

import pytest

from data.errors import StageError
from rewards import math_answers
from rewards.contract import Episode
from rewards.math_answers import MathReward
from rewards.rule_config import MathRewardConfig


def episode(text: str, reference: str | None) -> Episode:
    return Episode("", text, (1,), (2,), "", True, reference)


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    """One process for all."""
    yield MathReward(MathRewardConfig(timeout_seconds=10.0))


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("So it is \\boxed{\\frac{2}{4}}.", "1/2", 1.0),
        ("0.5", "\\frac{1}{2}", 1.0),
        ("First 7, and then the answer is 42.", "42", 1.0),
        ("$1 + x$", "x+1", 1.0),
        ("$\\{2, 1\\}$", "\\{1,2\\}", 1.0),
        ("1,000", "1000", 1.0),
        ("\u7b54\u6848\u662f 5", "5", 1.0),
        ("\\boxed{41}", "42", 0.0),
        ("", "42", 0.0),
        ("no number", "42", 0.0),
        ("42", None, 0.0),
        ("42", "\u4e0d\u77e5\u9053", 0.0),
        ("a line\nbreak 3", "3", 1.0),
    ],
)
def test_answers(reward: MathReward, text: str, reference: str | None, expected: float) -> None:
    assert reward([episode(text, reference)]) == [expected]


def test_the_answer_can_be_extracted() -> None:
    tagged = MathReward(MathRewardConfig(extract="<answer>(.*?)</answer>", timeout_seconds=10.0))
    texts = ("<think>7</think><answer>8/2</answer> 9", "4")
    assert tagged([episode(text, "4") for text in texts]) == [1.0, 0.0]


def test_an_answer_without_end_is_wrong_and_the_next_one_is_read(caplog: pytest.LogCaptureFixture) -> None:
    found = MathReward(MathRewardConfig(name="sums", timeout_seconds=0.5))
    assert found([episode("10**10**10", "5"), episode("5", "5")]) == [0.0, 1.0]
    assert "ppo.rewards[sums]: an answer took more than 0.5 s or too much memory" in caplog.text


def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(3)\n", encoding="utf-8")
    monkeypatch.setattr(math_answers, "_WORKER", broken)
    with pytest.raises(StageError, match=r"did not start \(exit code 3\); the package `math-verify` is needed"):
        MathReward(MathRewardConfig())([episode("1", "1")])


def test_the_process_ends_with_the_reward() -> None:
    found = MathReward(MathRewardConfig(timeout_seconds=10.0))
    found([episode("1", "1")])
    worker = found._worker
    assert worker is not None and worker.poll() is None
    del found
    assert worker.poll() is not None
