"""Several components as one score: raw scores in, totals out.

For each component, in this order: raw score, normalise, clip, weigh; the total of an episode is the sum. A component
with a threshold is weighed by its Lagrange multiplier, and its part of an episode's total is by how much that episode
keeps the bound:

    total = sum_i weight_i * x_i + sum_j lambda_j * slack_j

The multipliers follow the mean violation of a step by projected gradient ascent on the dual,

    lambda <- min(max(lambda - learning_rate * mean(slack), 0), lambda_max)

after the step that they weighed (Stooke et al. 2020, https://arxiv.org/abs/2007.03964; Moskovitz et al. 2023,
https://arxiv.org/abs/2310.04373).

Pure and in the floats of Python (64 bits), summed from left to right: the same raw scores give the same totals bit for
bit, on every rank and whenever they are combined again. Knows no model and no training.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, Self

from rewards.component_config import ComponentConfig
from rewards.composite_config import EnsembleRewardConfig
from rewards.contract import Episode, RewardFunction
from rewards.ensemble import combine_members

_OWN = "own"


@dataclass(frozen=True)
class Judge:
    """What gives raw scores.

    Attributes:
        columns: Their names.
        judge: Gives, for each name, one score an episode.
    """

    columns: tuple[str, ...]
    judge: Callable[[Sequence[Episode]], Sequence[Sequence[float]]]

    @classmethod
    def of(cls, component: ComponentConfig, function: RewardFunction) -> Self:
        """A component with one score."""
        return cls((component.key,), lambda episodes: [function(episodes)])


@dataclass(frozen=True)
class Moments:
    """Of all scores of a component that were seen, by Welford's recurrence.

    Attributes:
        count: How many.
        mean: Their mean.
        sum_of_squares: Of their differences to the mean.
    """

    count: int = 0
    mean: float = 0.0
    sum_of_squares: float = 0.0

    def see(self, scores: Sequence[float]) -> "Moments":
        """Those with these scores, too."""
        count, mean, sum_of_squares = self.count, self.mean, self.sum_of_squares
        for score in scores:
            count += 1
            delta = score - mean
            mean += delta / count
            sum_of_squares += delta * (score - mean)
        return Moments(count, mean, sum_of_squares)

    def normalised(self, score: float) -> float:
        """The score less the mean, over the standard deviation where there is one."""
        variance = self.sum_of_squares / self.count if self.count else 0.0
        return (score - self.mean) / (sqrt(variance) if variance > 0.0 else 1.0)


@dataclass(frozen=True)
class RewardState:
    """What a reward carries from step to step.

    Attributes:
        moments: By name, of the components with `normalize: running`.
        multipliers: By name, of those with a threshold.
    """

    moments: Mapping[str, Moments]
    multipliers: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As it stands in checkpoints and rollouts."""
        moments = {name: [each.count, each.mean, each.sum_of_squares] for name, each in self.moments.items()}
        return {"moments": moments, "multipliers": dict(self.multipliers)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls({name: Moments(*each) for name, each in data["moments"].items()}, dict(data["multipliers"]))


@dataclass(frozen=True)
class Combined:
    """What became of the raw scores of one step.

    Attributes:
        totals: One an episode.
        state: For the next step.
        metrics: `reward/<name>/*` and `constraint/<name>/*`.
    """

    totals: list[float]
    state: RewardState
    metrics: dict[str, float]


def initial_state(components: Sequence[ComponentConfig]) -> RewardState:
    """The state before the first step."""
    return RewardState(
        {each.key: Moments() for each in components if each.normalize == "running"},
        {each.key: each.threshold.multiplier_init for each in components if each.threshold is not None},
    )


def member_columns(component: EnsembleRewardConfig, counts: Sequence[int]) -> list[tuple[str, ...]]:
    """Names of the raw scores of an ensemble, by the reward models that it is made of.

    Args:
        component: The ensemble.
        counts: Members of each of its reward models, the run's own first where it is one of them.

    Returns:
        `name/own` and `name/1` for reward models of one member, `name/own.1`, `name/own.2` and so on for one that was
        trained as an ensemble itself.
    """
    return [
        (name,) if count == 1 else tuple(f"{name}.{member}" for member in range(1, count + 1))
        for name, count in zip(_model_names(component), counts, strict=True)
    ]


def raw_columns(component: ComponentConfig, known: Collection[str]) -> list[str]:
    """Names of a component's raw scores, out of all that there are.

    Args:
        component: One of them.
        known: Of all components, in the order of `CompositeReward.columns`.

    Raises:
        KeyError: There are none of the component, or none of a reward model of it.
    """
    if not isinstance(component, EnsembleRewardConfig):
        own = {component.key: [name for name in known if name == component.key]}
    else:
        own = {
            model: [name for name in known if name == model or name.startswith(f"{model}.")]
            for model in _model_names(component)
        }
    for wanted, names in own.items():
        if not names:
            raise KeyError(wanted)
    return [name for names in own.values() for name in names]


def _model_names(component: EnsembleRewardConfig) -> list[str]:
    numbers = [str(number + 1) for number in range(len(component.members))]
    return [f"{component.key}/{each}" for each in ([_OWN] if component.with_own else []) + numbers]


def combine(
    parts: Mapping[str, Sequence[float]], components: Sequence[ComponentConfig], state: RewardState | None = None
) -> Combined:
    """Combine the raw scores of all episodes of one step.

    Args:
        parts: Raw scores by the names of `CompositeReward.columns`; those of other components may be there, too.
        components: What to make of them, at least one.
        state: At the start of the step; None before the first one.

    Returns:
        Totals and metrics, and the state after the step. Where a total is not finite, neither is what is made of it,
        and the state stays as it was.
    """
    state = state or initial_state(components)
    moments, multipliers = dict(state.moments), dict(state.multipliers)
    weighed: list[list[float]] = []
    metrics: dict[str, float] = {}
    for component in components:
        name = component.key
        raw = _raw(parts, component)
        scores = raw
        if component.normalize == "running":
            moments[name] = moments[name].see(raw)
            scores = [moments[name].normalised(score) for score in raw]
        elif component.normalize == "batch":
            own = Moments().see(raw)
            scores = [own.normalised(score) for score in raw]
        clipped = _clipped(scores, component.clip)
        if component.threshold is None:
            part = [component.weight * score for score in clipped]
        else:
            bound, multiplier = component.threshold, multipliers[name]
            slack = [bound.slack(score) for score in clipped]
            part = [multiplier * each for each in slack]
            violation = -_mean(slack)
            metrics |= {f"constraint/{name}/multiplier": multiplier, f"constraint/{name}/violation": violation}
            risen = multiplier + bound.multiplier_learning_rate * violation
            multipliers[name] = min(max(risen, 0.0), bound.multiplier_max)
        metrics |= _metrics(name, raw, part)
        if isinstance(component, EnsembleRewardConfig):
            metrics[f"reward/{name}/disagreement"] = _disagreement(parts, component)
        if component.clip is not None:
            changed = [float(after != before) for before, after in zip(scores, clipped, strict=True)]
            metrics[f"reward/{name}/clipped_fraction"] = _mean(changed)
        weighed.append(part)
    totals = [_sum(each) for each in zip(*weighed, strict=True)]
    after = RewardState(moments, multipliers) if all(map(isfinite, totals)) else state
    return Combined(totals, after, metrics)


class CompositeReward:
    """Components with what judges by them, and the state between steps."""

    def __init__(self, components: Sequence[ComponentConfig], judges: Sequence[Judge]) -> None:
        """Put them together.

        Args:
            components: In the order of the sum.
            judges: Of all components, in their order.
        """
        self.components = list(components)
        self.columns = [column for each in judges for column in each.columns]
        self.state = initial_state(components)
        self._judges = judges

    def judge(self, episodes: Sequence[Episode]) -> list[list[float]]:
        """The raw scores of each episode, in the order of `columns`."""
        by_column = [scores for each in self._judges for scores in each.judge(episodes)]
        return [list(row) for row in zip(*by_column, strict=True)]

    def combine(self, rows: Sequence[Sequence[float]]) -> Combined:
        """Combine the raw scores of all episodes of a step, and move on to the next one.

        Args:
            rows: As `judge` gives them, of all ranks.
        """
        combined = combine(self.by_column(rows), self.components, self.state)
        self.state = combined.state
        return combined

    def by_column(self, rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
        """The raw scores as `combine` takes them."""
        return {name: list(scores) for name, scores in zip(self.columns, zip(*rows, strict=True), strict=True)}


def _raw(parts: Mapping[str, Sequence[float]], component: ComponentConfig) -> list[float]:
    columns = [parts[column] for column in raw_columns(component, parts)]
    if not isinstance(component, EnsembleRewardConfig):
        return list(columns[0])
    return [combine_members(scores, component.combine) for scores in zip(*columns, strict=True)]


def _disagreement(parts: Mapping[str, Sequence[float]], component: EnsembleRewardConfig) -> float:
    """Mean over the episodes of the standard deviation of what the members say."""
    columns = [parts[column] for column in raw_columns(component, parts)]
    spreads = [sqrt(max(Moments().see(each).sum_of_squares / len(each), 0.0)) for each in zip(*columns, strict=True)]
    return _mean(spreads)


def _clipped(scores: list[float], bounds: Sequence[float] | None) -> list[float]:
    if bounds is None:
        return scores
    low, high = bounds
    return [low if score < low else high if score > high else score for score in scores]  # NaN stays


def _metrics(name: str, raw: Sequence[float], part: Sequence[float]) -> dict[str, float]:
    moments = Moments().see(raw)
    return {
        f"reward/{name}/raw_mean": _mean(raw),
        f"reward/{name}/raw_std": sqrt(max(moments.sum_of_squares / len(raw), 0.0)),
        f"reward/{name}/weighted_mean": _mean(part),
    }


def _mean(values: Sequence[float]) -> float:
    return _sum(values) / len(values)


def _sum(values: Sequence[float]) -> float:
    """From left to right: `sum` compensates from Python 3.12 on, and gives other bits."""
    total = 0.0
    for value in values:
        total += value
    return total
