"""How good the saved reward model is on held-out pairs: accuracy, margin, calibration, bias to length."""

from dataclasses import dataclass
from typing import Any

import torch

from data.batch_encoding import Ids
from rewards.bradley_terry import (
    bradley_terry_accuracy,
    bradley_terry_loss,
    expected_calibration_error,
    preference_probability,
)
from rewards.contract import ScoreModel

_RELIABILITY_BINS = 10


@dataclass(frozen=True)
class TokenizedPair:
    """A preference pair as token ids; both responses end with EOS."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    margin: float | None
    weight: float | None = None


def evaluate_pairs(
    score_model: ScoreModel, pairs: list[TokenizedPair]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Score held-out pairs with the loaded artifact.

    Args:
        score_model: The reward model as later stages load it.
        pairs: Pairs that no stage trains on.

    Returns:
        Metrics `eval/*` (calibration is that of `sigmoid(chosen - rejected)` as the probability that the first
        of a randomly ordered pair is the chosen one), and the reliability diagram's bins.
    """
    prompts = [tuple(pair.prompt_ids) for pair in pairs]
    chosen = torch.tensor(score_model.score(prompts, [tuple(pair.chosen_ids) for pair in pairs]))
    rejected = torch.tensor(score_model.score(prompts, [tuple(pair.rejected_ids) for pair in pairs]))
    lengths = torch.tensor([len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs])
    # Every pair counts in both orders: the outcome would be 1 throughout otherwise, and calibration void.
    probability = preference_probability(chosen, rejected)
    probabilities = torch.cat([probability, 1 - probability])
    outcomes = torch.cat([torch.ones_like(probability), torch.zeros_like(probability)])
    metrics = {
        "eval/accuracy": float(bradley_terry_accuracy(chosen, rejected)),
        "eval/margin": float((chosen - rejected).mean()),
        "eval/loss": float(bradley_terry_loss(chosen, rejected)),
        "eval/expected_calibration_error": float(
            expected_calibration_error(probabilities, outcomes, num_bins=_RELIABILITY_BINS)
        ),
        "eval/length_baseline_accuracy": float(((lengths > 0).float() + 0.5 * (lengths == 0).float()).mean()),
        "eval/pairs": float(len(pairs)),
    }
    for name, rows in (("longer_chosen", lengths > 0), ("shorter_chosen", lengths < 0)):
        if rows.any():
            metrics[f"eval/accuracy_{name}"] = float(bradley_terry_accuracy(chosen[rows], rejected[rows]))
    return metrics, _reliability(probabilities, outcomes)


def _reliability(probabilities: torch.Tensor, outcomes: torch.Tensor) -> list[dict[str, float]]:
    """Mean predicted and observed frequency of each bin of probabilities that has pairs in it."""
    bins = (probabilities * _RELIABILITY_BINS).long().clamp(max=_RELIABILITY_BINS - 1)
    rows: list[dict[str, Any]] = []
    for index in range(_RELIABILITY_BINS):
        inside = bins == index
        if inside.any():
            rows.append(
                {
                    "confidence": float(probabilities[inside].mean()),
                    "accuracy": float(outcomes[inside].float().mean()),
                    "count": int(inside.sum()),
                }
            )
    return rows
