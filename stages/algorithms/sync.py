"""Statistics for the proof that an engine runs the adapter just trained.

Shape legend: n = probe tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def rms(values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Root of the mean square; in the units of the values.

    Example:
        >>> rms(torch.tensor([3.0, -4.0]))  # sqrt((9 + 16) / 2)
        tensor(3.5355)
    """
    return values.square().mean().sqrt()


def pearson_correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Pearson's correlation; 0 where one of the two does not vary."""
    x, y = x - x.mean(), y - y.mean()
    norm = x.norm() * y.norm()
    return torch.where(norm > 0, (x * y).sum() / norm.clamp(min=torch.finfo(x.dtype).tiny), torch.zeros_like(norm))
