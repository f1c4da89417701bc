"""What a measurement was made on, and tables of it. Light: no torch."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import psutil

Row = Sequence[str]


def conditions(packages: Sequence[str]) -> dict[str, str]:
    """Machine and versions, by name.

    Args:
        packages: Distributions whose versions matter.
    """
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return {"machine": f"{os.cpu_count()} cores, {cpu}, {memory:.0f} GiB", "versions": versions}


def condition_lines(packages: Sequence[str]) -> list[str]:
    """The same as lines, with the day and the load that other work puts on the machine at this moment."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    load = f"{os.getloadavg()[0]:.2f} (last minute, before the measurement)"
    found = {**conditions(packages), "day": today, "load": load}
    return [f"{name}: {value}" for name, value in found.items()]


def markdown_table(header: Row, rows: Sequence[Row]) -> str:
    """A table as docs/benchmarks.md has them; cells hold no `|`."""
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(header)}", *lines[1:]])


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
