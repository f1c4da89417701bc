"""How far a reward model's differences of scores are probabilities, and by which temperature they become so."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.bradley_terry import expected_calibration_error

NUM_BINS = 10
_LEAST_SLOPE, _LARGEST_SLOPE = 0.01, 100.0
_HALVINGS = 60


@dataclass(frozen=True)
class Calibration:
    """What a temperature does to held-out probabilities.

    Attributes:
        temperature: Differences of scores are divided by it; fitted on all pairs.
        error: Expected calibration error of the differences as they are.
        calibrated_error: The same with temperatures fitted on the other half of the pairs each, so that no pair helps
            to calibrate itself.
        bins: Reliability diagram of the differences as they are.
        calibrated_bins: Reliability diagram of the calibrated ones.
    """

    temperature: float
    error: float
    calibrated_error: float
    bins: list[dict[str, float]]
    calibrated_bins: list[dict[str, float]]


def calibrate(differences: Float[Tensor, " N"]) -> Calibration:
    """Fit a temperature and measure what it changes.

    Args:
        differences: Score of the chosen minus that of the rejected response of each pair, at least one.
    """
    differences = differences.double()
    halves = torch.arange(len(differences)) % 2 == 0
    scaled = differences.clone()
    if len(differences) > 1:
        for own in (halves, ~halves):
            scaled[own] = differences[own] / fit_temperature(differences[~own])
    return Calibration(
        temperature=fit_temperature(differences),
        error=_error(differences),
        calibrated_error=_error(scaled),
        bins=_reliability(differences),
        calibrated_bins=_reliability(scaled),
    )


def fit_temperature(differences: Float[Tensor, " N"]) -> float:
    """The temperature T that makes `sigmoid(difference / T)` most likely.

    Guo et al. 2017, section 4.2, https://arxiv.org/abs/1706.04599. The likelihood is concave in 1 / T, whose best value
    is searched by halving between 0.01 and 100; where all pairs are right, or half of them, none within is best.

    Args:
        differences: Score of the chosen minus that of the rejected response of each pair.

    Returns:
        T, in [0.01, 100].
    """
    differences = differences.double()
    low, high = _LEAST_SLOPE, _LARGEST_SLOPE
    for _ in range(_HALVINGS):
        slope = math.sqrt(low * high)
        rises = float((differences * torch.sigmoid(-slope * differences)).mean()) > 0
        low, high = (slope, high) if rises else (low, slope)
    return 1.0 / math.sqrt(low * high)


def _both_orders(differences: Float[Tensor, " N"]) -> tuple[Float[Tensor, " 2N"], Float[Tensor, " 2N"]]:
    """Probabilities and outcomes of every pair in both orders: in one, every outcome would be 1."""
    probability = torch.sigmoid(differences)
    outcomes = torch.cat([torch.ones_like(probability), torch.zeros_like(probability)])
    return torch.cat([probability, 1 - probability]), outcomes


def _error(differences: Float[Tensor, " N"]) -> float:
    probabilities, outcomes = _both_orders(differences)
    return float(expected_calibration_error(probabilities, outcomes, num_bins=NUM_BINS))


def _reliability(differences: Float[Tensor, " N"]) -> list[dict[str, float]]:
    """Mean predicted and observed frequency of each bin of probabilities that has pairs in it."""
    probabilities, outcomes = _both_orders(differences)
    bins = (probabilities * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    rows: list[dict[str, float]] = []
    for index in range(NUM_BINS):
        inside = bins == index
        if inside.any():
            rows.append(
                {
                    "confidence": float(probabilities[inside].mean()),
                    "accuracy": float(outcomes[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
    return rows
