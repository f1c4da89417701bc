"""Child processes of a stage: started in a session of their own, read line by line, ended as a whole tree."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from stages.process_tree import end_tree

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


def python_command(*arguments: str) -> list[str]:
    """`python -m ...` that dies with this process."""
    return [sys.executable, "-m", "stages.process", *arguments]
