"""A server below a stage ends with the stage, however that one ends, and so does everything that the server started.

    python -m stages.guard PARENT_PID GRACE_SECONDS MODULE ARGS...

runs `python -m MODULE ARGS...` and ends its whole tree when it gets SIGTERM, when the process PARENT_PID is no longer
its parent, or when the module itself has ended. `stages.process` alone would not do: the kernel kills the one process
that asked for it, and vLLM's engine processes, one level down, would stay and hold their memory.

To be started as the leader of a session of its own: whatever stays in that session is ended, too.
"""

import os
import signal
import subprocess
import sys
import time
from types import FrameType

import psutil

from stages.process_tree import end_tree, tree_of

GRACE_SECONDS = 10.0
"""Time between SIGTERM and SIGKILL."""

_POLL_SECONDS = 0.25


def guard_command(module: str, *arguments: str, grace_seconds: float = GRACE_SECONDS) -> list[str]:
    """`python -m MODULE ...` under a guard that this process is the parent of."""
    return [sys.executable, "-m", "stages.guard", str(os.getpid()), str(grace_seconds), module, *arguments]


def run_guarded(parent_pid: int, command: list[str], *, grace_seconds: float) -> int:
    """Run a command until it ends or the parent is gone; leave nothing of it.

    Args:
        parent_pid: Process that this one lives for.
        command: Program and arguments.
        grace_seconds: Time between SIGTERM and SIGKILL.

    Returns:
        Its exit status, negative for a signal.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None and os.getppid() == parent_pid:
            time.sleep(_POLL_SECONDS)
        return process.returncode if process.returncode is not None else -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        end_tree(process, grace_seconds)
        own = os.getpid()
        for left in tree_of(own):  # those whose own parent had already gone
            if left.pid != own:
                _kill(left)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _leave(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    status = run_guarded(
        int(sys.argv[1]),
        [sys.executable, "-m", "stages.process", *sys.argv[3:]],
        grace_seconds=float(sys.argv[2]),
    )
    sys.exit(status if status >= 0 else 128 - status)
