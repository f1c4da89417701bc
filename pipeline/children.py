"""Child processes of a stage: started in a session of their own, read line by line, ended as a whole tree."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

import psutil

from stages.interruption import Interrupted
from stages.process_tree import end_processes, end_tree, tree_of

GRACE_SECONDS = 10.0
STEP_SECONDS = 600.0
"""How long a step in work may take after the first request to end."""
_LAST_OUTPUT_SECONDS = 5.0


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    grace_seconds: float = GRACE_SECONDS,
    *,
    is_launcher: bool = False,
) -> int:
    """Run a process to its end and hand on each line that it prints.

    Its output is read by a thread, so that a grandchild that holds the pipe open cannot hang the run.
    A first request to end (Ctrl-C, SIGTERM) is handed on to the stage, which may finish a step; a second one ends it
    at once. Whatever ends this function early, no process of the tree is left.

    Args:
        command: Program and arguments.
        environment: The whole environment.
        on_line: Called with each line of standard output and standard error; of a line that redraws itself
            (progress bars) only what stood last.
        grace_seconds: Time between SIGTERM and SIGKILL.
        is_launcher: The stage runs in the processes that this one starts: it would give them half a minute only.

    Returns:
        The exit status; negative for a signal.

    Raises:
        Interrupted: This process was asked to end; the stage has ended.
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
    below: list[psutil.Process] = []
    try:
        status = process.wait()
        reader.join(_LAST_OUTPUT_SECONDS)
        return status
    except Interrupted:
        below = tree_of(process.pid)  # before it ends: afterwards nothing leads to what it started
        _ask_to_end(process, is_launcher)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STEP_SECONDS)
        raise
    finally:
        end_tree(process, grace_seconds)
        end_processes(below, grace_seconds)


def _ask_to_end(process: subprocess.Popen[bytes], is_launcher: bool) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        for asked in top.children() if is_launcher else [top]:
            with contextlib.suppress(psutil.NoSuchProcess):
                asked.send_signal(signal.SIGTERM)


def _read_lines(process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for raw in process.stdout:
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        on_line(line.rpartition("\r")[2])


def python_command(*arguments: str) -> list[str]:
    """`python -m ...` that dies with this process."""
    return [sys.executable, "-m", "stages.process", *arguments]
