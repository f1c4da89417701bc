"""Where a reward model is right: held-out accuracy by length difference, by source and by stated margin."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from data.intervals import share_above_zero, wilson_interval
from stages.reward_model.evaluation_pairs import TokenizedPair

Row = dict[str, Any]


def accuracy_breakdown(pairs: Sequence[TokenizedPair], differences: Sequence[float]) -> list[Row]:
    """Accuracy of groups of pairs, beside that of always choosing the longer response.

    Args:
        pairs: Held-out pairs.
        differences: Score of the chosen minus that of the rejected response of each.

    Returns:
        Rows `{by, group, pairs, accuracy, low, high, length_baseline}` with a 95 % interval; ties count half. By source
        and by margin only where pairs have them.
    """
    lengths = [len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs]
    rows = _rows("length difference", [_length_group(lengths)(length) for length in lengths], differences, lengths)
    if any(pair.source is not None for pair in pairs):
        rows += _rows("source", [pair.source or "unnamed" for pair in pairs], differences, lengths)
    margins = [pair.margin for pair in pairs if pair.margin is not None]
    if margins:
        middle = median(margins)
        groups = ["none stated" if pair.margin is None else _margin_group(pair.margin, middle) for pair in pairs]
        rows += _rows("margin", groups, differences, lengths)
    return rows


def _length_group(lengths: Sequence[int]) -> Callable[[int], str]:
    """Groups of about a quarter of the pairs each: by sign, and at the median distance."""
    middle = max(round(median([abs(length) for length in lengths if length] or [1])), 1)

    def group(length: int) -> str:
        if length == 0:
            return "as long"
        side = "longer" if length > 0 else "shorter"
        near = f"1 to {middle}" if middle > 1 else "1"
        return f"chosen {side} by {near if abs(length) <= middle else f'over {middle}'} tokens"

    return group


def _margin_group(margin: float, middle: float) -> str:
    return f"up to {middle:g}" if margin <= middle else f"over {middle:g}"


def _rows(by: str, groups: Sequence[str], differences: Sequence[float], lengths: Sequence[int]) -> list[Row]:
    rows = []
    for group in sorted(set(groups)):
        inside = [number for number, own in enumerate(groups) if own == group]
        accuracy = share_above_zero([differences[number] for number in inside])
        low, high = wilson_interval(accuracy, len(inside))
        rows.append(
            {
                "by": by,
                "group": group,
                "pairs": len(inside),
                "accuracy": accuracy,
                "low": low,
                "high": high,
                "length_baseline": share_above_zero([lengths[number] for number in inside]),
            }
        )
    return rows
