"""Benchmarks of reward models in the form of RewardBench: pairs by subset (Lambert et al. 2024, section 4)."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.config import RowsConfig
from data.conversations import SkippedRow
from data.drafts import read_draft
from data.errors import DataError
from data.recognition import needed_columns, recognise_format
from data.records import preferences_of, require_length
from data.schema import PreferencePair
from data.sources import read_rows

_NAME = "benchmark"
_WHOLE = "all"


class BenchPairs(NamedTuple):
    """The pairs of a benchmark.

    Attributes:
        pairs: In the file's order, each with the name of its subset as `source`. Repeats stay: they are the file's.
        skipped: Rows that are no pair, by reason.
    """

    pairs: list[PreferencePair]
    skipped: Counter[str]


def read_bench(path: str) -> BenchPairs:
    """Read pairs with a column `subset`; without one all rows are one subset.

    Args:
        path: File, folder or glob, of any format of preferences that holds one pair a row.

    Raises:
        DataError: It cannot be read, a row is of another format than the first, or none is a pair.
    """
    if not any(sign in path for sign in "*?[") and not Path(path).expanduser().exists():
        raise DataError(f"{path}: there is no such file; one with pairs is needed; name another")
    pairs: list[PreferencePair] = []
    skipped: Counter[str] = Counter()
    record_format = None
    for row in read_rows(RowsConfig(path=path), None, name=_NAME):
        record_format = record_format or recognise_format(row, "preferences", name=_NAME)
        if record_format in ("ranking", "labeled"):
            raise DataError(
                f"{row.origin}: a row of format `{record_format}`; a benchmark needs rows of one pair each, with "
                f"`prompt`, `chosen`, `rejected` and `subset`; give another file"
            )
        if missing := [name for name in needed_columns(record_format, "preferences") if name not in row.values]:
            raise DataError(
                f"{row.origin}: column `{missing[0]}` is missing, which the rows before it have; repair the row"
            )
        subset = row.values.get("subset")
        if not isinstance(subset, str | None):
            raise DataError(
                f"{row.origin}: `subset` holds {type(subset).__name__}; the subset's name is needed; repair the row"
            )
        try:
            draft = read_draft(row, record_format, "preferences", _NAME)
            require_length(draft)
            found = preferences_of(draft)
        except SkippedRow as reason:
            skipped[str(reason)] += 1
            continue
        pairs += [pair.model_copy(update={"source": (subset or "").strip() or _WHOLE}) for pair in found]
    if not pairs:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in skipped.items()) or "no rows"
        raise DataError(
            f"{Path(path).name}: holds no pair ({reasons}); rows with `prompt`, `chosen`, `rejected` and `subset` are "
            f"needed; give another file"
        )
    return BenchPairs(pairs, skipped)
