"""Held-out figures of a reward model, by hand arithmetic."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from stages.reward_model.evaluation import evaluate_scores
from stages.reward_model.evaluation_pairs import TokenizedPair


def _evaluated(pairs: Sequence[TokenizedPair]) -> tuple[dict[str, float], dict[str, Any]]:
    """Each response scores a tenth of its last token."""
    chosen = [pair.chosen_ids[-1] / 10 for pair in pairs]
    return evaluate_scores(chosen, [pair.rejected_ids[-1] / 10 for pair in pairs], pairs)


def _pair(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> TokenizedPair:
    return TokenizedPair((1,), chosen, rejected, None)


def test_checklist_14_figures_by_hand() -> None:
    pairs = [
        _pair((5, 30), (10,)),  # longer chosen, right by 2
        _pair((5, 10), (20,)),  # longer chosen, wrong by 1
        _pair((40,), (7, 10)),  # shorter chosen, right by 3
        _pair((20,), (20,)),  # a tie in score and length
    ]
    metrics, notes = _evaluated(pairs)
    bins = notes["reliability"]
    assert metrics["eval/accuracy"] == pytest.approx(2.5 / 4)
    assert metrics["eval/margin"] == pytest.approx(1.0)  # (2 - 1 + 3 + 0) / 4
    losses = [math.log1p(math.exp(-gap)) for gap in (2.0, -1.0, 3.0, 0.0)]
    assert metrics["eval/loss"] == pytest.approx(sum(losses) / 4)
    assert metrics["eval/length_baseline_accuracy"] == pytest.approx(2.5 / 4)
    assert metrics["eval/accuracy_longer_chosen"] == 0.5
    assert metrics["eval/accuracy_shorter_chosen"] == 1.0
    assert metrics["eval/pairs"] == 4.0
    # Both orders: 0.881, 0.269, 0.953, 0.5 came true; 0.119, 0.731, 0.047, 0.5 did not.
    assert [(row["count"], row["accuracy"]) for row in bins] == [
        (1, 0.0), (1, 0.0), (1, 1.0), (2, 0.5), (1, 0.0), (1, 1.0), (1, 1.0),
    ]  # fmt: skip
    gaps = [0.0474, 0.1192, 1 - 0.2689, 0.0, 0.7311, 1 - 0.8808, 1 - 0.9526]
    weights = [1, 1, 1, 2, 1, 1, 1]
    expected = sum(gap * weight for gap, weight in zip(gaps, weights, strict=True)) / 8
    assert metrics["eval/expected_calibration_error"] == pytest.approx(expected, abs=1e-3)


def test_a_split_by_length_needs_such_pairs() -> None:
    metrics, _ = _evaluated([_pair((30,), (10,))])
    assert metrics["eval/length_baseline_accuracy"] == 0.5
    assert not any("longer" in name or "shorter" in name for name in metrics)
