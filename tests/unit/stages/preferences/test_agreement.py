"""Krippendorff's alpha against published numbers, and what it must not depend on."""

from itertools import permutations

import pytest

from stages.preferences.agreement import midranks, ordinal_alpha

# Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C: 4 observers, 12 units, `.` is missing. The
# ordinal alpha of these data, 0.815, is the one that the documentation of R's irr::kripp.alpha and of others prints.
TABLE = [
    [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
    [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, None, 3, None],
]  # fmt: skip
UNITS = [[float(value) for value in unit if value is not None] for unit in TABLE]


def test_the_published_ordinal_example_with_missing_values() -> None:
    assert ordinal_alpha(UNITS) == pytest.approx(0.815, abs=5e-4)
    # All digits, computed apart with the package krippendorff 0.9.0 (GPL, no part of this project).
    assert ordinal_alpha(UNITS) == pytest.approx(0.8153875037548814, abs=1e-12)


def test_the_published_binary_example() -> None:
    # Section A: two observers, ten units; with two values every difference function gives the same: 0.095.
    meg, owen = (0, 1, 0, 0, 0, 0, 0, 0, 1, 0), (1, 1, 1, 0, 0, 1, 0, 0, 0, 0)
    assert ordinal_alpha(list(zip(meg, owen, strict=True))) == pytest.approx(0.095, abs=5e-4)


def test_by_hand() -> None:
    # Units (1, 1), (1, 2), (3, 3): n_1 = 3, n_2 = 1, n_3 = 2; places 1.5, 3.5, 5.
    # D_o: one unit with two ordered pairs of (2)^2 = 8, over 6. D_e: 2 (3 * 4 + 6 * 12.25 + 2 * 2.25) = 180, over 30.
    assert ordinal_alpha([(1, 1), (1, 2), (3, 3)]) == pytest.approx(1 - (8 / 6) / (180 / 30), abs=1e-12)


def test_full_agreement_chance_and_contradiction() -> None:
    assert ordinal_alpha([(1, 1), (2, 2), (3, 3)]) == 1.0
    orders = list(permutations((1.0, 2.0, 3.0)))
    # Every order beside every other one as often: on average chance, up to the correction for few values.
    pairs = [(a[i], b[i]) for a in orders for b in orders for i in range(3)]
    assert ordinal_alpha(pairs) == pytest.approx(0.0, abs=0.01)
    opposite = ordinal_alpha([(1, 3), (2, 2), (3, 1)])
    assert opposite is not None and opposite < -0.5


def test_nothing_to_compare() -> None:
    assert ordinal_alpha([]) is None
    assert ordinal_alpha([(1,), (2,)]) is None
    assert ordinal_alpha([(2, 2), (2, 2)]) is None


def test_names_of_values_order_of_people_and_lonely_values_do_not_count() -> None:
    alpha = ordinal_alpha(UNITS)
    assert ordinal_alpha([[value**3 + 7 for value in unit] for unit in UNITS]) == pytest.approx(alpha)
    assert ordinal_alpha([unit[::-1] for unit in reversed(UNITS)]) == pytest.approx(alpha)
    assert ordinal_alpha([*UNITS, [4.0], []]) == pytest.approx(alpha)


def test_midranks() -> None:
    assert midranks([2, 1, 3]) == (2.0, 1.0, 3.0)
    assert midranks([1, 1, 2]) == midranks([1, 1, 3]) == (1.5, 1.5, 3.0)
    assert midranks([1, 1, 1, 1]) == (2.5,) * 4
    assert midranks([4, 2, 2, 2]) == (4.0, 2.0, 2.0, 2.0)
    assert midranks([]) == ()
