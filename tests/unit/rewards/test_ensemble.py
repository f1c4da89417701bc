"""Several judges as one, by hand arithmetic."""

import math

import pytest

from rewards.ensemble import combine_members


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [2.0, 4.0]),
        ("min", [1.0, 4.0]),
        # 1 and 3: mean 2, standard deviation 1; 4 and 4 agree
        ("mean_minus_std", [1.0, 4.0]),
    ],
)
def test_two_members(how: str, expected: list[float]) -> None:
    assert [combine_members(scores, how) for scores in ((1.0, 3.0), (4.0, 4.0))] == expected  # type: ignore[arg-type]


def test_disagreement_of_three_is_charged() -> None:
    # mean 1, deviations -1, -1, 2: variance (1 + 1 + 4) / 3 = 2
    assert combine_members([0.0, 0.0, 3.0], "mean_minus_std") == pytest.approx(1 - 2**0.5)
    assert combine_members([1.0, 1.0, 1.0], "mean_minus_std") == 1.0


@pytest.mark.parametrize("how", ["mean", "min", "mean_minus_std"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_member_that_is_not_finite_leaves_no_number(how: str, bad: float) -> None:
    """The smallest of 1 and NaN would depend on their order."""
    assert math.isnan(combine_members([1.0, bad], how)) and math.isnan(combine_members([bad, 1.0], how))  # type: ignore[arg-type]
