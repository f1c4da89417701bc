"""Statistics for the proof that a rollout engine runs the adapter just trained.

The trainer and the engine score the same probe tokens before and after each sync. The gap between the two is
an RMS; whether the engine moved as the trainer did is a correlation of their changes. Where the bounds lie is
for the caller to say.

All arithmetic is in float64. Shape legend: N = probe tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def rms(values: Float[Tensor, " N"]) -> float:
    """Compute the root of the mean square.

        rms = sqrt(mean(values^2))

    Args:
        values: Gaps or changes of log-probabilities, in nats; at least one.

    Returns:
        Their size in nats. NaN if a value is NaN, so that no bound written as `rms <= bound` holds.

    Raises:
        ValueError: If there is no value.

    Example:
        >>> rms(torch.tensor([3.0, -3.0, 0.0, 0.0]))  # sqrt(18 / 4)
        2.1213203435596424
    """
    if not len(values):
        raise ValueError("values is empty; a mean needs at least one. Give the log-probabilities of the probe tokens.")
    return float(values.double().square().mean().sqrt())


def pearson_correlation(x: Float[Tensor, " N"], y: Float[Tensor, " N"]) -> float:
    """Compute Pearson's correlation coefficient.

        r = sum((x - mean(x)) * (y - mean(y))) / sqrt(sum((x - mean(x))^2) * sum((y - mean(y))^2))

    It is 0, and not undefined, where all values of x or all of y are equal: of an engine that does not change
    at all while the trainer does, the caller wants to know that nothing in it follows the trainer.

    Args:
        x: Change of each probe token's log-probability in the trainer, in nats; at least one.
        y: The same in the engine.

    Returns:
        From -1 to 1, up to rounding. NaN if a value is NaN, so that no bound written as `r >= bound` holds.

    Raises:
        ValueError: If there is no value.

    Example:
        >>> pearson_correlation(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 4.0]))  # 3 / sqrt(2 * 6)
        0.8660254037844387
    """
    if not len(x):
        raise ValueError("x is empty; a correlation needs at least one pair. Give the changes of the probe tokens.")
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x.double(), y.double()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / torch.sqrt(x.square().sum() * y.square().sum()))
