"""Where the wall-clock time of a run went, from its records: the stages' own work and all that comes on top."""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.commands import read_json
from benchmarks.conditions import Row, markdown_table

_CHUNK_BYTES = 1 << 20
PARTS = ("Prefect", "W&B", "hashing and storing", "process starts and imports", "report", "other")


@dataclass(frozen=True)
class Account:
    """Seconds of one run.

    Attributes:
        wall: From the start of the process to its end.
        stages: Each executed stage's own work, writing its files included; imports, hashing and storing not.
        parts: What came on top, by `PARTS`.
        server_start: Waiting for Prefect's server, apart from all that.
        server_stop: Ending it, apart too.
    """

    wall: float
    stages: Mapping[str, float]
    parts: Mapping[str, float] = field(default_factory=dict)
    server_start: float = 0.0
    server_stop: float = 0.0

    @property
    def own(self) -> float:
        """The stages' own work in all."""
        return sum(self.stages.values())

    @property
    def overhead(self) -> float:
        """All parts; the server's start and stop are none of them."""
        return sum(self.parts.values())

    @property
    def without_server_start(self) -> float:
        """Wall-clock time as if the server had been there already."""
        return self.wall - self.server_start


def account(
    record: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]], *, spawned: float, wall: float
) -> Account:
    """Split the time of a run.

    Args:
        record: `run.json`, with `timings`.
        manifests: The manifests of the executed stages, by stage, with `timings`.
        spawned: When the run's process was started, seconds since 1970.
        wall: Seconds until it was gone.
    """
    seconds = {part: record["timings"]["seconds"].get(part, 0.0) for part in _RECORDED}
    within = {
        part: sum(manifest["timings"].get(part, 0.0) for manifest in manifests.values())
        for part in ("hashing", "imports", "stage", "storing")
    }
    told = sum(seconds[part] for part in ("hashing", "storing", "wandb_messages"))
    # In a process of its own: its start, and what it does after its manifest is made.
    beside_stages = seconds["stages"] - told - sum(within.values())
    before, after = record["timings"]["began"] - spawned, spawned + wall - record["timings"]["ended"]
    parts = {
        "Prefect": seconds["prefect_import"] + seconds["prefect_flow"] - seconds["stages"] + seconds["prefect_drain"],
        "W&B": seconds["wandb_start"] + seconds["wandb_messages"] + seconds["wandb_close"],
        "hashing and storing": seconds["hashing"] + seconds["storing"] + within["hashing"] + within["storing"],
        "process starts and imports": before + within["imports"] + beside_stages + after,
        "report": seconds["report"],
    }
    apart = seconds["server_start"] + seconds["server_stop"]
    parts["other"] = wall - apart - within["stage"] - sum(parts.values())
    stages = {stage: manifest["timings"]["stage"] for stage, manifest in manifests.items()}
    return Account(wall, stages, parts, seconds["server_start"], seconds["server_stop"])


_RECORDED = (
    "server_start", "server_stop", "prefect_import", "prefect_flow", "prefect_drain", "stages", "wandb_start",
    "wandb_messages", "wandb_close", "hashing", "storing", "report",
)  # fmt: skip


def read_account(run_dir: Path, *, spawned: float, wall: float) -> Account:
    """The account of a run that has ended."""
    record = read_json(run_dir / "run.json")
    executed = [stage["name"] for stage in record["stages"] if stage["status"] == "executed"]
    manifests = {stage: read_json(run_dir / stage / "manifest.json") for stage in executed}
    return account(record, manifests, spawned=spawned, wall=wall)


def account_table(found: Account) -> str:
    """The split of a run that executed its stages, in seconds and in percent of the stages' own work."""

    def row(name: str, seconds: float) -> Row:
        return (name, f"{seconds:.2f}", f"{100 * seconds / found.own:.2f}" if found.own else "-")

    rows = [
        *(row(f"`{stage}`, own work", seconds) for stage, seconds in found.stages.items()),
        row("**stages' own work**", found.own),
        *(row(name, found.parts[name]) for name in PARTS),
        row("**overhead**", found.overhead),
        row("Prefect server's start, apart", found.server_start),
        row("Prefect server's end, apart", found.server_stop),
        row("**wall clock**", found.wall),
    ]
    return markdown_table(("", "seconds", "% of own work"), rows)


def repeats_table(repeats: Mapping[str, Sequence[float]], goals: Mapping[str, float]) -> str:
    """Least, median and most of the repeats of each command, beside its goal."""
    rows = [
        (
            name,
            str(len(values)),
            *(f"{figure(values):.2f}" for figure in (min, statistics.median, max)),
            f"{goals[name]:g}",
            "yes" if statistics.median(values) <= goals[name] else "no",
        )
        for name, values in repeats.items()
    ]
    header = ("seconds", "runs", "min", "median", "max", "goal, at most", "median meets it")
    return markdown_table(header, rows)


def rewriting_seconds(folders: Sequence[Path], scratch: Path) -> tuple[int, float]:
    """What writing the same bytes once more takes, until they are on the disk.

    A stage's own work includes writing its payload, which nothing records apart.

    Args:
        folders: Payloads.
        scratch: Folder on the same file system.

    Returns:
        Bytes and seconds.
    """
    size, seconds = 0, 0.0
    copy = scratch / "copy"
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        content = path.read_bytes()
        start = time.perf_counter()
        with copy.open("wb") as file:
            for begin in range(0, len(content), _CHUNK_BYTES):
                file.write(content[begin : begin + _CHUNK_BYTES])
            file.flush()
            os.fsync(file.fileno())
        seconds += time.perf_counter() - start
        size += len(content)
    copy.unlink(missing_ok=True)
    return size, seconds
