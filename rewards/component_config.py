"""What all components of a reward have: name, weight or threshold, normalising, clipping. Imports pydantic only."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from data.strict import Contradiction, Section, differs

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _is_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"found {name[:80]!r}, must name a curve: at most 64 letters, digits, `_`, `.` and `-`, the first a letter "
            f"or digit; write it as brevity, say"
        )
    return name


Name = Annotated[str, AfterValidator(_is_name)]


class ThresholdConfig(Section):
    """A bound that the mean of a component has to keep, in place of a weight.

    The bound's Lagrange multiplier weighs by how much an episode keeps it, and follows the mean violation by dual
    ascent (Stooke et al. 2020, https://arxiv.org/abs/2007.03964; on reward models Moskovitz et al. 2023,
    https://arxiv.org/abs/2310.04373).
    """

    at_least: float | None = None
    """The mean has to be this or more, in the component's own units."""

    at_most: float | None = None
    """The mean has to be this or less."""

    multiplier_init: float = Field(default=0.0, ge=0)
    """The multiplier of the first step."""

    multiplier_learning_rate: float = Field(default=0.1, gt=0)
    """By how much the multiplier rises in a step that misses the bound by 1, and falls in one that exceeds it by 1."""

    multiplier_max: float = Field(default=10.0, gt=0)
    """The multiplier stays between 0 and this. One that stays here says that the bound cannot be kept."""

    def contradictions(self) -> Iterator[Contradiction]:
        """No bound, or two, or a start above the end."""
        if (self.at_least is None) == (self.at_most is None):
            found = "neither of them is given" if self.at_least is None else "both are given"
            yield Contradiction(
                ("at_least", "at_most"),
                f"exactly one of `at_least` and `at_most` is needed, but {found}; give one (two bounds are two "
                f"components)",
            )
        if self.multiplier_init > self.multiplier_max:
            yield Contradiction(
                ("multiplier_init", "multiplier_max"),
                f"multiplier_init={self.multiplier_init:g} is above multiplier_max={self.multiplier_max:g}; lower the "
                f"one or raise the other",
            )

    def slack(self, value: float) -> float:
        """By how much a value keeps the bound; negative where it does not."""
        if self.at_least is not None:
            return value - self.at_least
        return (self.at_most or 0.0) - value


class ComponentConfig(Section):
    """One part of the score. Its raw scores are normalised, then clipped, then weighed; the score is the sum."""

    needs_reference: ClassVar[bool] = False
    """Whether it compares with the `reference` of the prompt's record."""

    type: str

    name: Name | None = None
    """Of its curves (`reward/<name>/...`) and of its column in the rollouts. Default: its type."""

    weight: float = 1.0
    """Factor of its scores in the sum. 0 only measures; below 0 what the component praises costs."""

    threshold: ThresholdConfig | None = None
    """A bound with a Lagrange multiplier in place of the weight."""

    normalize: Literal["none", "batch", "running"] = "none"
    """Subtract the mean and divide by the standard deviation: those of the step's episodes (`batch`), or of all that
    were seen so far, this step's included (`running`)."""

    clip: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """`[low, high]`: bounds of a score, after normalising."""

    def contradictions(self) -> Iterator[Contradiction]:
        """A weight beside a bound, a bound on what has no unit, a range without room."""
        if self.threshold is not None and differs(self, "weight"):
            yield Contradiction(
                ("weight", "threshold"),
                f"weight={self.weight:g} and `threshold` are both set, but the multiplier of a threshold is its "
                f"weight; drop one of the two",
            )
        if self.threshold is not None and self.normalize != "none":
            yield Contradiction(
                ("normalize", "threshold"),
                f"normalize={self.normalize} takes the units away in which `threshold` is given; use "
                f"`normalize: none`, or a weight",
            )
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            yield Contradiction(
                ("clip",), f"clip=[{self.clip[0]:g}, {self.clip[1]:g}] leaves no room; write it as [low, high]"
            )

    @property
    def key(self) -> str:
        """`name`, or the type where there is none."""
        return self.name or self.type

    @property
    def setting(self) -> str:
        """How messages name it."""
        return f"ppo.rewards[{self.key}]"


def repeated_names(components: Sequence[ComponentConfig]) -> Iterator[Contradiction]:
    """Two curves of one name."""
    names = [component.key for component in components]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Contradiction(
            ("rewards",),
            f"rewards has {names.count(name)} components called `{name}`, but each has curves and a column of its own; "
            f"give them different names (`name: ...`)",
        )
