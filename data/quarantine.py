"""Rows that are left out: counted by reason, written with place and content, and too many of them stop the run.

One JSON object a line: `{"source", "place", "reason", "row"}`. The place is below the source's folder and the order
is that of the rows, so the same data give the same bytes on every machine.
"""

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.files import reason_of
from data.readers import Row
from data.shown import shown

QUARANTINE = "quarantine.jsonl"
_NUM_SHOWN = 3
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out.

    Attributes:
        row: The row as it was read.
        reason: One word with underscores, under which it is counted.
        note: What else a reader wants to know, e.g. which row it repeats.
    """

    row: Row
    reason: str
    note: str = ""


def count_reasons(skipped: Iterable[Skipped]) -> Counter[str]:
    """Number of rows by reason."""
    return Counter(each.reason for each in skipped)


def check_share(skipped: Sequence[Skipped], num_rows: int, max_share: float, *, name: str, quarantine: Path) -> None:
    """Stop where more rows are skipped than may be, and leave them in a file.

    Args:
        skipped: Those of one source.
        num_rows: Rows of the source, skipped ones included.
        max_share: Largest share that may be skipped, in [0, 1].
        name: The source's key in the configuration, e.g. `data.preferences`.
        quarantine: Where to write the skipped rows.

    Raises:
        DataError: The share is larger.
    """
    if len(skipped) <= max_share * num_rows:
        return
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(count_reasons(skipped).items()))
    first = "; ".join(f"{each.row.origin} {each.reason}" for each in skipped[:_NUM_SHOWN])
    where = leave_quarantine(quarantine, name, skipped)
    raise DataError(
        f"{name}: {len(skipped)} of {num_rows} rows would be skipped ({reasons}), the first at {first}; at most "
        f"{max_share:.4g} of them may be; repair the rows ({where}), or raise `data.max_skipped_share`"
    )


def leave_quarantine(path: Path, name: str, skipped: Iterable[Skipped]) -> str:
    """Write the skipped rows of a source that stops a run; there will be no artifact to hold them.

    Args:
        path: The file.
        name: The source's key in the configuration.
        skipped: The rows.

    Returns:
        Where they are, for a message. That the file cannot be written must not hide what is wrong with the data.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_quarantine(path, ((name.removeprefix("data."), each) for each in skipped))
    except OSError as error:
        return f"they could not be written to {path}: {reason_of(error)}"
    return f"all of them are in {path}"


def write_quarantine(path: Path, skipped: Iterable[tuple[str, Skipped]]) -> None:
    """Write skipped rows, each with the name of its source.

    Args:
        path: The file; nothing is written where no row was skipped, so that no file says that all were used.
        skipped: Pairs of source and row.
    """
    lines = [_line(source, each) for source, each in skipped]
    if lines:
        path.write_bytes(b"".join(lines))


def _line(source: str, each: Skipped) -> bytes:
    found = {"source": source, "place": each.row.place or each.row.origin, "reason": each.reason}
    if each.note:
        found["note"] = each.note
    text = json.dumps({**found, "row": _plain(each.row.values)}, ensure_ascii=False, sort_keys=True)
    # Halves of characters, which UTF-8 cannot hold, become JSON's own escapes.
    return text.encode("utf-8", errors="backslashreplace") + b"\n"


def _plain(value: Any, depth: int = 0) -> Any:
    """A value in the types of JSON; the rest (of Parquet: bytes, times) as text."""
    if depth > _MAX_DEPTH:
        return "(nested too deeply to show)"
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case dict():
            return {str(key): _plain(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, depth + 1) for item in value]
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return shown(repr(value), 1000)
