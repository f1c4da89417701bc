"""The command line as a user starts it: a fresh process, timed from outside, and the run folder that it leaves."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
_SAMPLE_SECONDS = 0.5
# What tells the processes beside the stages apart, in their command lines.
MIRRORS = {"prefect server": "Prefect server", "tracking_worker": "W&B", "wandb-core": "W&B", "gpu_stats": "W&B"}


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Attributes:
        code: Exit code.
        spawned: When it was started, seconds since 1970.
        seconds: Wall-clock time until it was gone.
        cpu: CPU seconds of the processes of `MIRRORS`, by what they are; sampled, so a little low.
        output: Standard output and standard error.
    """

    code: int
    spawned: float
    seconds: float
    cpu: Mapping[str, float] = field(default_factory=dict)
    output: str = ""


def measured_environment(prefect_home: Path) -> dict[str, str]:
    """The environment of measured runs: a Prefect server of their own, and nothing sent to W&B's servers."""
    dropped = ("PREFECT_API_URL", "PREFECT_PROFILE", "WANDB_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PREFECT_HOME": str(prefect_home)}


def rlhf(
    arguments: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, sampled: bool = False
) -> Finished:
    """Run `python -m pipeline` from the repository's root.

    Args:
        arguments: Of the command line.
        log: Where its output goes; the last output is overwritten.
        environment: Of the process; by default this one's.
        sampled: Look at its child processes twice a second, for `cpu`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    seen: dict[tuple[int, float], tuple[str, float]] = {}
    with log.open("wb") as file:
        spawned, start = time.time(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=REPOSITORY,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while sampled and process.poll() is None:
                _sample(process.pid, seen)
                try:
                    process.wait(_SAMPLE_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
            code = process.wait()
        except BaseException:  # Ctrl-C: the run ends its own children when it is told to end
            process.terminate()
            process.wait()
            raise
        seconds = time.perf_counter() - start
    cpu: dict[str, float] = {}
    for kind, value in seen.values():
        cpu[kind] = cpu.get(kind, 0.0) + value
    return Finished(code, spawned, seconds, cpu, log.read_text(encoding="utf-8", errors="replace"))


def free_name(output_dir: Path, stem: str) -> str:
    """`stem`, or with the first number that no run in the folder has yet."""
    name, number = stem, 1
    while (output_dir / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run's folder; empty where there is none."""
    if not path.is_file():
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl` file; none where it is missing."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def last_lines(output: str, count: int = 12) -> str:
    """The end of a command's output, indented, for messages."""
    return "\n".join(f"  | {line}" for line in output.splitlines()[-count:])


def mirror_kind(command_line: str) -> str | None:
    """What a process is, of those that only mirror a run; None for all others."""
    return next((kind for words, kind in MIRRORS.items() if words in command_line), None)


def _sample(pid: int, seen: dict[tuple[int, float], tuple[str, float]]) -> None:
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return
    for child in children:
        try:
            kind = mirror_kind(" ".join(child.cmdline()))
            times = child.cpu_times()
            if kind is not None:
                seen[child.pid, child.create_time()] = (kind, times.user + times.system)
        except psutil.Error:
            continue  # it has ended
