"""`metrics.jsonl`: one JSON object a step, the source of truth that W&B and Prefect only mirror."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class MetricsWriter:
    """Appends one JSON object a step and flushes it, so that a reader can follow the file."""

    def __init__(self, path: Path, *, seconds_before: float = 0.0) -> None:
        """Open `path` for appending.

        Args:
            path: The file.
            seconds_before: What the execution that goes on here had taken.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._start = time.monotonic() - seconds_before

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of one step.

        Args:
            step: Optimizer step or PPO step, from 1 on; 0 is the state before training.
            values: Flat, `group/name`. A value that is not finite is written as null: JSON has no NaN.
        """
        row: dict[str, Any] = {"step": step, "seconds": round(time.monotonic() - self._start, 3)}
        row |= {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()


class NullMetricsWriter(MetricsWriter):
    """Drops everything: for the ranks of a distributed stage that do not write."""

    def __init__(self) -> None:
        """Open nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Drop the metrics."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a `metrics.jsonl`; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def cut_metrics(path: Path, step: int) -> float:
    """Drop the rows after a step, of a run that goes on from there. The file is replaced whole.

    Returns:
        The seconds of the last row that stays, or 0.
    """
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    path.parent.mkdir(parents=True, exist_ok=True)
    replacement = path.with_name(f".{path.name}.cut")
    replacement.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(replacement, path)
    return float(rows[-1]["seconds"]) if rows else 0.0


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
