"""Cuts a batch into forward passes of similar length, so that little of each pass is padding."""

from collections.abc import Sequence


def microbatches_by_length(lengths: Sequence[int], *, max_rows: int, max_tokens: int | None = None) -> list[list[int]]:
    """Sort rows by length and cut them where a pass is full.

    Args:
        lengths: Tokens of each row.
        max_rows: Rows of one pass; at least 1.
        max_tokens: Tokens of one pass, padding included: rows times the longest. A longer row passes alone. None sets
            no such bound.

    Returns:
        Row numbers of each pass, from short to long; every row once. Rows of equal length keep their order.
    """
    passes: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        current = passes[-1] if passes else None
        # The row is the longest so far, so it sets the width of the pass that it joins.
        if (
            current is None
            or len(current) == max_rows
            or (max_tokens is not None and (len(current) + 1) * lengths[row] > max_tokens)
        ):
            passes.append([row])
        else:
            current.append(row)
    return passes
