"""Totals, moments and multipliers by hand arithmetic."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter

from rewards.composite import (
    Combined,
    CompositeReward,
    Judge,
    Moments,
    RewardState,
    combine,
    initial_state,
    member_columns,
    raw_columns,
)
from rewards.composite_config import RewardConfig
from rewards.contract import Episode

_COMPONENTS: TypeAdapter[list[RewardConfig]] = TypeAdapter(list[RewardConfig])


def components(*settings: dict[str, Any]) -> list[RewardConfig]:
    return _COMPONENTS.validate_python([{"type": "length"} | each for each in settings])


def combined(
    parts: dict[str, Sequence[float]], *settings: dict[str, Any], state: RewardState | None = None
) -> Combined:
    return combine(parts, components(*settings), state)


def test_the_total_is_the_weighted_sum() -> None:
    found = combined({"a": [1.0, 2.0], "b": [10.0, -4.0]}, {"name": "a", "weight": 2.0}, {"name": "b", "weight": -0.5})
    assert found.totals == [2.0 * 1.0 - 0.5 * 10.0, 2.0 * 2.0 + 0.5 * 4.0] == [-3.0, 6.0]
    # a: 1, 2: mean 1.5, deviation 0.5; b: 10, -4: mean 3, deviation 7
    assert found.metrics == {
        "reward/a/raw_mean": 1.5, "reward/a/raw_std": 0.5, "reward/a/weighted_mean": 3.0,
        "reward/b/raw_mean": 3.0, "reward/b/raw_std": 7.0, "reward/b/weighted_mean": -1.5,
    }  # fmt: skip


def test_one_component_of_weight_1_is_its_raw_scores_bit_for_bit() -> None:
    scores = [0.1, -1 / 3, 1e-300, 7e17]
    assert combined({"length": scores}, {}).totals == scores


def test_a_weight_of_0_measures_and_adds_nothing() -> None:
    found = combined({"a": [5.0, 7.0], "b": [1.0, 2.0]}, {"name": "a", "weight": 0}, {"name": "b"})
    assert found.totals == [1.0, 2.0]
    assert found.metrics["reward/a/raw_mean"] == 6.0 and found.metrics["reward/a/weighted_mean"] == 0.0


def test_raw_is_normalised_then_clipped_then_weighed() -> None:
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    found = combined({"x": [1.0, 3.0, 5.0, 7.0]}, {"name": "x", "weight": 2, "normalize": "batch", "clip": [-0.4, 0.5]})
    root = 5**0.5
    assert found.totals == pytest.approx([-0.8, -0.8, 2 / root, 1.0])  # 1/root is 0.45, the only one between
    assert found.metrics["reward/x/clipped_fraction"] == 0.75
    assert found.metrics["reward/x/raw_mean"] == 4.0 and found.metrics["reward/x/raw_std"] == pytest.approx(root)
    assert found.state == RewardState({}, {}), "moments of a batch are not kept"


def test_equal_scores_are_0_when_they_are_normalised() -> None:
    for normalize in ("batch", "running"):
        assert combined({"x": [3.0, 3.0]}, {"name": "x", "normalize": normalize}).totals == [0.0, 0.0]
        assert combined({"x": [3.0]}, {"name": "x", "normalize": normalize}).totals == [0.0]


def test_running_moments_are_those_of_all_steps_so_far() -> None:
    settings = {"name": "x", "normalize": "running"}
    first = combined({"x": [1.0, 3.0]}, settings)
    assert first.totals == [-1.0, 1.0]  # mean 2, deviation 1
    assert first.state.moments == {"x": Moments(2, 2.0, 2.0)}
    # then 1, 3, 5, 7: mean 4, squares 20, deviation sqrt(5)
    second = combined({"x": [5.0, 7.0]}, settings, state=first.state)
    assert second.totals == pytest.approx([1 / 5**0.5, 3 / 5**0.5])
    assert second.state.moments == {"x": Moments(4, 4.0, 20.0)}
    assert first.state.moments == {"x": Moments(2, 2.0, 2.0)}, "a state is not changed in place"


def test_a_multiplier_follows_the_violation_over_three_steps() -> None:
    """At least 0.5, rate 2, at most 1.5. A part is multiplier * (score - 0.5)."""
    bound = {"at_least": 0.5, "multiplier_init": 0.25, "multiplier_learning_rate": 2.0, "multiplier_max": 1.5}
    reward = {"name": "score"}, {"name": "kept", "threshold": bound}
    first = combined({"score": [1.0, 2.0], "kept": [0.0, 0.5]}, *reward)
    assert first.totals == [1.0 + 0.25 * -0.5, 2.0 + 0.25 * 0.0] == [0.875, 2.0]
    # slack -0.5 and 0: violation 0.25; multiplier 0.25 + 2 * 0.25
    assert first.metrics["constraint/kept/multiplier"] == 0.25 and first.metrics["constraint/kept/violation"] == 0.25
    assert first.metrics["reward/kept/weighted_mean"] == -0.0625
    assert first.state.multipliers == {"kept": 0.75}
    # slack -1.5 twice: violation 1.5; 0.75 + 3 is above 1.5
    second = combined({"score": [0.0, 0.0], "kept": [-1.0, -1.0]}, *reward, state=first.state)
    assert second.totals == [0.75 * -1.5] * 2
    assert second.state.multipliers == {"kept": 1.5}
    # slack 1.5 and 0.5: violation -1; 1.5 - 2 is below 0
    third = combined({"score": [0.0, 0.0], "kept": [2.0, 1.0]}, *reward, state=second.state)
    assert third.totals == [1.5 * 1.5, 1.5 * 0.5]
    assert third.metrics["constraint/kept/violation"] == -1.0 and third.state.multipliers == {"kept": 0.0}


def test_at_most_is_kept_from_above_and_a_bound_sees_clipped_scores() -> None:
    bound = {"name": "x", "clip": [0, 5], "threshold": {"at_most": 4, "multiplier_init": 1.0}}
    found = combined({"x": [1.0, 9.0]}, bound)
    assert found.totals == [3.0, -1.0]
    assert found.metrics["constraint/x/violation"] == -1.0 and found.metrics["reward/x/clipped_fraction"] == 0.5
    assert found.state.multipliers == {"x": pytest.approx(0.9)}  # 1 - 0.1 * 1
    zero = combined({"x": [1.0, 9.0]}, {"name": "x", "threshold": {"at_most": 0, "multiplier_init": 1.0}})
    assert zero.totals == [-1.0, -9.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("settings", [{}, {"normalize": "batch"}, {"normalize": "running"}, {"clip": [-1, 1]}])
def test_what_is_not_finite_is_not_hidden_and_moves_no_state(bad: float, settings: dict[str, Any]) -> None:
    rule = {"name": "x", **settings}, {"name": "y", "threshold": {"at_least": 5}}
    before = combined({"x": [1.0, 2.0], "y": [1.0, 1.0]}, *rule).state
    found = combined({"x": [bad, 1.0], "y": [0.0, 0.0]}, *rule, state=before)
    if settings == {"clip": [-1, 1]} and not math.isnan(bad):
        assert found.totals[0] - found.totals[1] == math.copysign(1, bad) - 1, "an end of the range is a number"
        return
    assert not math.isfinite(found.totals[0]) and found.state == before


def test_an_ensemble_keeps_the_scores_of_each_member() -> None:
    ensemble = {"type": "ensemble", "name": "e", "members": ["p", "q"], "weight": 3}
    (component,) = components(ensemble)
    assert member_columns(component, [1, 1, 1]) == [("e/own",), ("e/1",), ("e/2",)]
    parts = {"e/own": [1.0, 0.0], "e/1": [1.0, 0.0], "e/2": [1.0, 3.0]}
    # second: mean 1, variance (1 + 1 + 4) / 3
    assert combine(parts, [component]).totals == pytest.approx([3.0, 3 * (1 - 2**0.5)])
    apart = components(ensemble | {"with_own": False, "combine": "min"})
    assert raw_columns(apart[0], parts) == ["e/1", "e/2"]
    assert combine(parts, apart).totals == [3.0, 0.0]


def test_reward_models_of_several_members_bring_them_all() -> None:
    ensemble = {"type": "ensemble", "name": "e", "members": ["p", "q"], "combine": "min"}
    (component,) = components(ensemble)
    names = [name for own in member_columns(component, [2, 1, 3]) for name in own]
    assert names == ["e/own.1", "e/own.2", "e/1", "e/2.1", "e/2.2", "e/2.3"]
    parts = {name: [float(number)] for number, name in enumerate(reversed(names))} | {"e": [-9.0], "e/10": [-9.0]}
    assert sorted(raw_columns(component, parts)) == sorted(names), "neither `e` nor `e/10` is one of them"
    assert combine(parts, [component]).totals == [0.0]
    without_own = components(ensemble | {"with_own": False, "members": ["p"], "combine": "mean"})
    assert combine(parts, without_own).totals == [3.0], "those of the own one and of q are left out"
    with pytest.raises(KeyError, match="e/2"):
        raw_columns(component, ["e/own", "e/1"])


def test_the_state_comes_back_from_json() -> None:
    rules = components(
        {"name": "x", "normalize": "running"}, {"name": "y", "threshold": {"at_least": 0.1}}, {"name": "z"}
    )
    start = initial_state(rules)
    assert start == RewardState({"x": Moments()}, {"y": 0.0})
    after = combine({"x": [0.1, 0.7], "y": [-1 / 3, 0.0], "z": [1.0, 1.0]}, rules, start).state
    assert after != start and RewardState.from_json(after.to_json()) == after


def test_a_composite_judges_by_column_and_moves_on() -> None:
    rules = components({"name": "x", "normalize": "running"}, {"name": "y"})
    episodes = [Episode("", text, (1,), (2,), "", True) for text in ("a", "bcd")]
    x, y = rules
    reward = CompositeReward(
        rules,
        [
            Judge.of(x, lambda found: [float(len(e.response_text)) for e in found]),
            Judge.of(y, lambda found: [5.0] * len(found)),
        ],
    )
    rows = reward.judge(episodes)
    assert rows == [[1.0, 5.0], [3.0, 5.0]] and reward.state == initial_state(rules)
    assert reward.combine(rows).totals == [4.0, 6.0]
    assert reward.state.moments["x"] == Moments(2, 2.0, 2.0)
    assert reward.by_column(rows) == {"x": [1.0, 3.0], "y": [5.0, 5.0]}


def test_a_component_that_forgets_an_episode_is_an_error() -> None:
    both = components({"name": "x"}, {"name": "y"})
    reward = CompositeReward(both, [Judge(("x", "y"), lambda e: [[1.0], [1.0, 2.0]])])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        reward.judge([])
