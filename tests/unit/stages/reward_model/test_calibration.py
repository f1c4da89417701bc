"""Temperature and breakdown of held-out pairs, by hand and on planted scores."""

import math

import pytest
import torch

from stages.reward_model.breakdown import accuracy_breakdown
from stages.reward_model.calibration import calibrate, fit_temperature
from stages.reward_model.evaluation_pairs import TokenizedPair


def pair(chosen: int, rejected: int, margin: float | None = None, source: str | None = None) -> TokenizedPair:
    """A pair of responses of these lengths."""
    return TokenizedPair((1,), (2,) * chosen, (3,) * rejected, margin, None, source)


def test_the_temperature_of_two_kinds_of_pairs_by_hand() -> None:
    # Three of four pairs right by 2: the likelihood is greatest where sigmoid(2 / T) = 3 / 4, so T = 2 / ln 3.
    differences = torch.tensor([2.0, 2.0, 2.0, -2.0])
    assert fit_temperature(differences) == pytest.approx(2 / math.log(3), rel=1e-6)
    # Scores in other units give a temperature in these units.
    assert fit_temperature(differences * 7) == pytest.approx(14 / math.log(3), rel=1e-6)


def test_there_is_no_temperature_where_all_are_right_or_half() -> None:
    assert fit_temperature(torch.tensor([1.0, 2.0])) == pytest.approx(0.01, rel=1e-6)
    assert fit_temperature(torch.tensor([1.0, -1.0])) == pytest.approx(100, rel=1e-6)
    assert fit_temperature(torch.tensor([-1.0])) == pytest.approx(100, rel=1e-6)
    assert calibrate(torch.tensor([0.5])).temperature == pytest.approx(0.01, rel=1e-6)


def test_overconfident_scores_are_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, generator=generator)
    right = torch.rand(4000, generator=generator) < torch.sigmoid(true)
    differences = torch.where(right, true, -true) * 5  # five times too sure
    found = calibrate(differences)
    assert found.temperature == pytest.approx(5, rel=0.1)
    assert found.error > 0.2 and found.calibrated_error < 0.03
    assert sum(row["count"] for row in found.calibrated_bins) == 8000
    assert all(abs(row["confidence"] - row["accuracy"]) < 0.08 for row in found.calibrated_bins)
    assert any(abs(row["confidence"] - row["accuracy"]) > 0.2 for row in found.bins)


def test_no_pair_calibrates_itself() -> None:
    # Each half alone says a temperature that fits the other half badly.
    differences = torch.tensor([5.0, -0.1, 5.0, -0.1])
    found = calibrate(differences)
    scaled = torch.tensor([5.0 / 100, -0.1 / 0.01, 5.0 / 100, -0.1 / 0.01], dtype=torch.float64)
    expected = torch.sigmoid(scaled)
    confidences = sorted(row["confidence"] for row in found.calibrated_bins)
    assert confidences == pytest.approx(sorted({*expected.tolist(), *(1 - expected).tolist()}), abs=1e-3)


def test_accuracy_by_length_source_and_margin() -> None:
    pairs = [
        pair(5, 4, 1.0, "a"), pair(9, 4, 3.0, "a"), pair(3, 5, None, "b"), pair(4, 4, 1.0, "b"), pair(1, 9, 2.0, None),
    ]  # fmt: skip
    rows = accuracy_breakdown(pairs, [1.0, -1.0, 2.0, 0.0, 3.0])
    found = {(row["by"], row["group"]): (row["pairs"], row["accuracy"], row["length_baseline"]) for row in rows}
    # Distances 1, 5, 2 and 8: their median is 3.5, rounded to 4.
    assert found == {
        ("length difference", "as long"): (1, 0.5, 0.5),
        ("length difference", "chosen longer by 1 to 4 tokens"): (1, 1.0, 1.0),
        ("length difference", "chosen longer by over 4 tokens"): (1, 0.0, 1.0),
        ("length difference", "chosen shorter by 1 to 4 tokens"): (1, 1.0, 0.0),
        ("length difference", "chosen shorter by over 4 tokens"): (1, 1.0, 0.0),
        ("source", "a"): (2, 0.5, 1.0),
        ("source", "b"): (2, 0.75, 0.25),
        ("source", "unnamed"): (1, 1.0, 0.0),
        ("margin", "none stated"): (1, 1.0, 0.0),
        ("margin", "over 1.5"): (2, 0.5, 0.5),
        ("margin", "up to 1.5"): (2, 0.75, 0.75),
    }
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)


def test_without_sources_and_margins_only_lengths_count() -> None:
    assert {row["by"] for row in accuracy_breakdown([pair(2, 1), pair(1, 2)], [1.0, 1.0])} == {"length difference"}
    assert accuracy_breakdown([pair(2, 2)], [0.0])[0]["group"] == "as long"
