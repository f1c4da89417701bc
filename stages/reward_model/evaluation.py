"""How good scores are on held-out pairs: accuracy, margin, calibration, bias to length."""

from collections.abc import Sequence
from typing import Any

import torch

from rewards.bradley_terry import bradley_terry_accuracy, bradley_terry_loss
from stages.reward_model.breakdown import accuracy_breakdown
from stages.reward_model.calibration import calibrate
from stages.reward_model.evaluation_pairs import TokenizedPair


def evaluate_scores(
    chosen_scores: Sequence[float], rejected_scores: Sequence[float], pairs: Sequence[TokenizedPair]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure held-out pairs by their scores.

    Args:
        chosen_scores: Of the preferred response of each pair.
        rejected_scores: Of the other one.
        pairs: That no stage trains on, for what their accuracy is broken down by.

    Returns:
        Metrics `eval/*` (calibration is that of `sigmoid(chosen - rejected)` as the probability that the first
        of a randomly ordered pair is the chosen one), and notes: the bins of the reliability diagrams before and after
        calibration, accuracy by groups of pairs.
    """
    chosen, rejected = torch.tensor(chosen_scores), torch.tensor(rejected_scores)
    lengths = torch.tensor([len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs])
    calibration = calibrate(chosen - rejected)
    metrics = {
        "eval/accuracy": float(bradley_terry_accuracy(chosen, rejected)),
        "eval/margin": float((chosen - rejected).mean()),
        "eval/loss": float(bradley_terry_loss(chosen, rejected)),
        "eval/expected_calibration_error": calibration.error,
        "eval/expected_calibration_error_calibrated": calibration.calibrated_error,
        "eval/temperature": calibration.temperature,
        "eval/length_baseline_accuracy": float(((lengths > 0).float() + 0.5 * (lengths == 0).float()).mean()),
        "eval/pairs": float(len(pairs)),
    }
    for name, rows in (("longer_chosen", lengths > 0), ("shorter_chosen", lengths < 0)):
        if rows.any():
            metrics[f"eval/accuracy_{name}"] = float(bradley_terry_accuracy(chosen[rows], rejected[rows]))
    return metrics, {
        "reliability": calibration.bins,
        "reliability_calibrated": calibration.calibrated_bins,
        "accuracy_by": accuracy_breakdown(pairs, (chosen - rejected).tolist()),
    }
