"""A reward model's accuracy on a benchmark: by subset, by section, and over all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.intervals import share_above_zero, wilson_interval

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}  # fmt: skip
"""Subsets of RewardBench by section (Lambert et al. 2024, table 1, https://arxiv.org/abs/2403.13787)."""

_MATH = "math-prm"


@dataclass(frozen=True)
class BenchRow:
    """One subset, or all pairs.

    Attributes:
        name: Of the subset.
        pairs: Their number.
        accuracy: Share of pairs whose chosen response has the higher score; equal scores count half.
        low: Lower end of the 95 % interval.
        high: Upper end.
        ties: Pairs with equal scores.
        length_baseline: Accuracy of always choosing the longer response, in tokens.
    """

    name: str
    pairs: int
    accuracy: float
    low: float
    high: float
    ties: int
    length_baseline: float


@dataclass(frozen=True)
class BenchTable:
    """Accuracy by subset.

    Attributes:
        subsets: In the order of the sections, then of the file.
        whole: All pairs alike.
        mean: Of the subsets, each counting once.
        sections: Accuracy by section, of those that the file has all subsets of.
        score: Mean of the four sections; None where one is missing.
    """

    subsets: list[BenchRow]
    whole: BenchRow
    mean: float
    sections: dict[str, float]
    score: float | None


def bench_table(subsets: Sequence[str], differences: Sequence[float], lengths: Sequence[int]) -> BenchTable:
    """Add up.

    Within a section pairs count alike, but in Reasoning mathematics counts as much as all code together (section 4.2 of
    the paper).

    Args:
        subsets: Of each pair, the name of its subset.
        differences: Of each pair, the score of the chosen minus that of the rejected response.
        lengths: Of each pair, the tokens of the chosen minus those of the rejected response.
    """
    names = list(dict.fromkeys(subsets))
    order = {name: place for place, name in enumerate(name for own in SECTIONS.values() for name in own)}
    names.sort(key=lambda name: order.get(name, len(order)))
    inside = {name: [row for row, own in enumerate(subsets) if own == name] for name in names}
    rows = {
        name: _row(name, [differences[row] for row in own], [lengths[row] for row in own])
        for name, own in inside.items()
    }
    sections = {
        section: _section([rows[name] for name in own])
        for section, own in SECTIONS.items()
        if all(name in rows for name in own)
    }
    return BenchTable(
        subsets=list(rows.values()),
        whole=_row("all pairs", differences, lengths),
        mean=sum(row.accuracy for row in rows.values()) / len(rows),
        sections=sections,
        score=sum(sections.values()) / len(SECTIONS) if len(sections) == len(SECTIONS) else None,
    )


def _row(name: str, differences: Sequence[float], lengths: Sequence[int]) -> BenchRow:
    accuracy = share_above_zero(differences)
    low, high = wilson_interval(accuracy, len(differences))
    ties = sum(value == 0 for value in differences)
    return BenchRow(name, len(differences), accuracy, low, high, ties, share_above_zero(lengths))


def _section(rows: Sequence[BenchRow]) -> float:
    code = sum(row.pairs for row in rows if row.name != _MATH)
    weights = [code if row.name == _MATH else row.pairs for row in rows]
    return sum(weight * row.accuracy for weight, row in zip(weights, rows, strict=True)) / sum(weights)
