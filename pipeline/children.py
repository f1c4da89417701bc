"""Child processes of a stage: started in a session of their own, read line by line, ended as a whole tree."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

GRACE_SECONDS = 10.0
_LAST_OUTPUT_SECONDS = 5.0


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    grace_seconds: float = GRACE_SECONDS,
) -> int:
    """Run a process to its end and hand on each line that it prints.

    Its output is read by a thread, so that a grandchild that holds the pipe open cannot hang the run.
    Whatever ends this function early (Ctrl-C, SIGTERM, an error), no process of the tree is left.

    Args:
        command: Program and arguments.
        environment: The whole environment.
        on_line: Called with each line of standard output and standard error; of a line that redraws itself
            (progress bars) only what stood last.
        grace_seconds: Time between SIGTERM and SIGKILL.

    Returns:
        The exit status; negative for a signal.
    """
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Ctrl-C reaches the whole foreground group of a terminal; the child is ours to end, in our order.
        start_new_session=True,
    )
    reader = threading.Thread(target=_read_lines, args=(process, on_line), daemon=True)
    reader.start()
    try:
        status = process.wait()
        reader.join(_LAST_OUTPUT_SECONDS)
        return status
    finally:
        end_tree(process, grace_seconds)


def _read_lines(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for raw in process.stdout:
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        on_line(line.rpartition("\r")[2])


def end_tree(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """End a process and all below it: SIGTERM, then SIGKILL for those that are still there.

    The descendants are collected before the first signal: torchrun gives each rank a session of its own, and
    once their parent is gone nothing leads to them.
    """
    tree = _descendants(process)
    if process.poll() is None:
        process.terminate()
        _, alive = psutil.wait_procs(tree, timeout=grace_seconds)
    else:
        _, alive = psutil.wait_procs(tree, timeout=0)
    for member in {*alive, *_descendants(process)}:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=grace_seconds)
    process.wait()


def _descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process, all below it, and all of its session (whose parents may be gone)."""
    members: set[psutil.Process] = set()
    try:
        root = psutil.Process(process.pid)
        members |= {root, *root.children(recursive=True)}
    except psutil.NoSuchProcess:
        pass
    for candidate in psutil.process_iter():
        try:
            if os.getsid(candidate.pid) == process.pid:
                members.add(candidate)
        except (ProcessLookupError, PermissionError):
            continue
    return list(members)


def python_command(*arguments: str) -> list[str]:
    """`python -m ...` that dies with this process."""
    return [sys.executable, "-m", "stages.process", *arguments]


def source_root() -> Path:
    """The folder from which our packages are imported; a child finds them there wherever it is started."""
    return Path(__file__).resolve().parent.parent
