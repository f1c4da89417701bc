"""RMS and correlation by hand, and against the `statistics` module."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from stages.algorithms.sync import pearson_correlation, rms

NAN = float("nan")


def random_pair(num: int = 50) -> tuple[Tensor, Tensor]:
    """Two float32 samples that share half of what moves them."""
    noise = torch.randn(3, num, generator=torch.Generator().manual_seed(0))
    return noise[0] + noise[1] + 3.0, 0.1 * (noise[0] + noise[2])


def test_rms_golden() -> None:
    assert rms(torch.tensor([3.0, -4.0])) == pytest.approx(math.sqrt(12.5), abs=1e-12)
    assert rms(torch.tensor([-0.25])) == 0.25
    assert rms(torch.zeros(3)) == 0.0


def test_statistics_are_plain_numbers() -> None:
    assert type(rms(torch.ones(2))) is float
    assert type(pearson_correlation(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))) is float


def test_rms_of_low_precision_values_is_taken_in_float64() -> None:
    values = torch.full((1000,), 300.0, dtype=torch.float16)  # the square is beyond float16
    assert rms(values) == 300.0
    assert rms(torch.full((3,), 1e-30)) == pytest.approx(1e-30, rel=1e-6)  # the square is below float32


def test_correlation_golden() -> None:
    x, y = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([2.0, 0.0, 4.0, 2.0])
    # centred: (-2, -1, 0, 3) and (0, -2, 2, 0): 2 / sqrt(14 * 8)
    assert pearson_correlation(x, y) == pytest.approx(2 / math.sqrt(112), abs=1e-12)


def test_correlation_equals_that_of_the_statistics_module() -> None:
    x, y = random_pair()
    expected = statistics.correlation(x.tolist(), y.tolist())
    assert 0.2 < expected < 0.8
    assert pearson_correlation(x, y) == pytest.approx(expected, abs=1e-12)
    assert pearson_correlation(y, x) == pytest.approx(expected, abs=1e-12)


def test_correlation_knows_neither_shift_nor_scale_but_the_sign() -> None:
    x, y = (value.double() for value in random_pair())
    expected = pearson_correlation(x, y)
    assert pearson_correlation(7 * x - 2, 0.01 * y + 5) == pytest.approx(expected, abs=1e-12)
    assert pearson_correlation(-x, y) == pytest.approx(-expected, abs=1e-12)
    assert pearson_correlation(x, x) == pytest.approx(1.0, abs=1e-12)
    assert pearson_correlation(x, 1 - 2 * x) == pytest.approx(-1.0, abs=1e-12)


def test_small_changes_of_large_values_correlate() -> None:
    """An update moves log-probabilities by little; squares of 1e-25 would vanish in float32."""
    x, y = torch.tensor([0.0, 1e-25, 2e-25]), torch.tensor([0.0, 1e-25, 3e-25])
    # centred in units of 1e-25: (-1, 0, 1) and (-4, -1, 5) / 3: 3 / sqrt(2 * 42 / 9)
    assert pearson_correlation(x, y) == pytest.approx(3 / math.sqrt(28 / 3), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_variance_there_is_no_correlation(value: float, dtype: torch.dtype) -> None:
    constant, moving = torch.full((7,), value, dtype=dtype), torch.arange(7, dtype=dtype)
    assert pearson_correlation(constant, moving) == 0.0
    assert pearson_correlation(moving, constant) == 0.0
    assert pearson_correlation(constant, constant) == 0.0
    assert pearson_correlation(moving[:1], moving[:1]) == 0.0


def test_nan_is_never_taken_for_a_proof() -> None:
    broken, moving = torch.tensor([0.0, NAN, 1.0]), torch.tensor([0.0, 1.0, 2.0])
    assert math.isnan(rms(broken))
    assert math.isnan(pearson_correlation(broken, moving))
    assert math.isnan(pearson_correlation(moving, broken))


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="values is empty; a mean needs at least one"):
        rms(torch.zeros(0))
    with pytest.raises(ValueError, match="x is empty; a correlation needs at least one pair"):
        pearson_correlation(torch.zeros(0), torch.zeros(0))
