"""What a run may not leave behind when it is over: processes, locks, temporary folders, checkpoints."""

import fcntl
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.processes import has_ended

_TEMPORARY = (".payload-*", ".scratch-*", ".writing-*", ".spec.json", ".run.json.*", ".manifest.json.*", "*.lock")
_ENDING_SECONDS = 30.0


def leftovers(outputs: Path) -> list[str]:
    """Everything below a folder of runs that is over and should be gone, and every process that has to do with it."""
    found = [str(path.relative_to(outputs)) for pattern in _TEMPORARY for path in outputs.rglob(pattern)]
    found += [str(path.relative_to(outputs)) for path in outputs.glob("*/*/checkpoints")]
    found += [f"{path.relative_to(outputs)} is held" for path in outputs.rglob(".lock") if _is_held(path)]
    return found + [f"process {pid}" for pid in still_alive(processes_of(outputs))]


def processes_of(outputs: Path) -> list[int]:
    """Processes whose command line, folder or environment names the folder of runs."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except psutil.Error:
            continue  # ended, or another user's
        if process.pid != psutil.Process().pid and any(str(outputs) in text for text in texts):
            found.append(process.pid)
    return found


def still_alive(pids: Iterable[int]) -> list[int]:
    """Those that do not end within some seconds: a process that was told to end needs a moment."""
    deadline = time.monotonic() + _ENDING_SECONDS
    alive = [pid for pid in pids if not has_ended(pid)]
    while alive and time.monotonic() < deadline:
        time.sleep(0.1)
        alive = [pid for pid in alive if not has_ended(pid)]
    return alive


def _is_held(path: Path) -> bool:
    with path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
