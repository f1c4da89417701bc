"""The Bradley-Terry model of preferences: loss, accuracy, probabilities and their calibration.

Pure: scores in, numbers out. It knows neither how scores are made nor how a model is trained. Only
differences of scores count, so nothing here changes when a constant is added to all of them (a bias of the
head, a shift for normalisation).

Shape legend: B = pairs in the batch, N = predictions.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    chosen_scores: Float[Tensor, " B"],
    rejected_scores: Float[Tensor, " B"],
    *,
    margin: Float[Tensor, " B"] | None = None,
    weight: Float[Tensor, " B"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Compute the mean negative log-likelihood of the preferences.

        d    = chosen - rejected - margin
        loss = mean(weight * (-(1 - label_smoothing) * logsigmoid(d) - label_smoothing * logsigmoid(-d)))

    Bradley and Terry 1952, https://doi.org/10.2307/2334029; as a loss Ziegler et al. 2019, equation 1,
    https://arxiv.org/abs/1909.08593; the margin is that of Llama 2, section 3.2.2,
    https://arxiv.org/abs/2307.09288. Equal scores without margin give exactly ln 2. Label smoothing is the
    likelihood under labels of which that share is flipped: unlike a bare logsigmoid, it has a finite minimum,
    at d = log((1 - label_smoothing) / label_smoothing).

    Args:
        chosen_scores: Raw scores (logits) of the preferred responses.
        rejected_scores: Raw scores of the other responses of the same pairs.
        margin: By how much the preferred score should lead, per pair, in score units; None is 0.
        weight: How much each pair counts; None is 1. The sum is divided by the number of pairs, not by that of the
            weights, so that the parts of a batch add up: scale weights to a mean of 1 over the data set.
        label_smoothing: Share of labels thought to be flipped, in [0, 0.5).

    Returns:
        The mean loss over pairs, in nats, in float32 (float64 for float64 scores).

    Raises:
        ValueError: If the label smoothing is outside [0, 0.5).

    Example:
        >>> bradley_terry_loss(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]))  # (0.1269 + 0.6931) / 2
        tensor(0.4100)
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing={label_smoothing} is outside [0, 0.5); it is the share of flipped labels, and "
            "at one half they say nothing. Use 0.1, say."
        )
    difference = _difference(chosen_scores, rejected_scores)
    if margin is not None:
        difference = difference - margin
    losses = -(1 - label_smoothing) * logsigmoid(difference) - label_smoothing * logsigmoid(-difference)
    if weight is not None:
        losses = losses * weight
    return losses.mean()


def bradley_terry_accuracy(
    chosen_scores: Float[Tensor, " B"], rejected_scores: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Compute the share of pairs in which the preferred response scores higher; ties count half.

    With ties at half, a reward model that gives one constant score has accuracy 0.5, not 0 or 1.

    Args:
        chosen_scores: Scores of the preferred responses.
        rejected_scores: Scores of the other responses of the same pairs.

    Returns:
        Accuracy in [0, 1].

    Example:
        >>> bradley_terry_accuracy(torch.tensor([2.0, 1.0, 0.0, 5.0]), torch.tensor([0.0, 1.0, 3.0, 4.0]))
        tensor(0.6250)
    """
    return (_difference(chosen_scores, rejected_scores).sign().mean() + 1) / 2


def preference_probability(
    chosen_scores: Float[Tensor, " B"], rejected_scores: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Compute the probability that the first response of each pair is preferred to the second.

        P = sigmoid(chosen - rejected)

    Args:
        chosen_scores: Raw scores of the first responses, in the units that the loss was trained on.
        rejected_scores: Raw scores of the second responses.

    Returns:
        Probabilities in [0, 1].

    Example:
        >>> preference_probability(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor([0.5000, 0.8808])
    """
    return torch.sigmoid(_difference(chosen_scores, rejected_scores))


def expected_calibration_error(
    probabilities: Float[Tensor, " N"], outcomes: Float[Tensor, " N"] | Bool[Tensor, " N"], *, num_bins: int
) -> float:
    """Compute by how much predicted probabilities miss observed frequencies, over bins of equal width.

        ECE = sum over bins of (n_bin / N) * abs(mean outcome - mean probability)

    Guo et al. 2017, section 2, https://arxiv.org/abs/1706.04599, with the probability of the outcome itself
    instead of the confidence in the argmax. Bins are [k / num_bins, (k + 1) / num_bins), the last one closed;
    empty bins count nothing. For preferences, put the two responses of a pair in an order that does not
    depend on the label: if the chosen one always comes first, every outcome is 1 and the number measures
    confidence instead of calibration.

    Args:
        probabilities: Predicted probabilities, in [0, 1].
        outcomes: What happened: 1 or True where the predicted event did, 0.5 for a tie.
        num_bins: How many bins; 10 or 15 are usual.

    Returns:
        The error in [0, 1]; 0 is calibrated.

    Raises:
        ValueError: If there is no prediction, a probability is outside [0, 1], or there is no bin.

    Example:
        >>> probabilities = torch.tensor([0.75, 0.75, 0.25, 0.25])
        >>> expected_calibration_error(probabilities, torch.tensor([True, True, False, True]), num_bins=2)
        0.25
    """
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} is below 1; use 10, say.")
    if probabilities.numel() == 0:
        raise ValueError("there are no probabilities; calibration needs at least one prediction.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a probability is outside [0, 1] or NaN; pass probabilities, not scores or logits.")
    bins = (probabilities * num_bins).long().clamp(max=num_bins - 1)
    surplus = outcomes.double() - probabilities
    surplus_of_bin = surplus.new_zeros(num_bins).index_add(0, bins, surplus)
    return float(surplus_of_bin.abs().sum() / len(surplus))


def _difference(first_scores: Float[Tensor, " B"], second_scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Subtract in float32 at least: bfloat16 scores near 10 are 0.06 apart."""
    dtype = torch.promote_types(first_scores.dtype, torch.float32)
    return first_scores.to(dtype) - second_scores
