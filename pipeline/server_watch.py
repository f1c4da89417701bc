"""The process above the shared Prefect server: it ends the server when nobody uses it any more.

    python -m pipeline.server_watch FOLDER

A run that ends by itself stops the server it was the last to use. One that is killed cannot; its client file names a
process that is gone, which is seen here. A server that ends while it is used (out of memory, killed) is started again,
at the same address and on the same database: runs that wait for its answer then get it.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from pipeline.server import retire_if_unused, server_answers
from stages.process_tree import end_tree

SERVER = [sys.executable, "-m", "prefect", "server", "start"]
_POLL_SECONDS = 1.0
_GRACE_SECONDS = 10.0
_MAX_RESTARTS = 3


def watch(folder: Path, command: list[str], poll_seconds: float = _POLL_SECONDS) -> int:
    """Run the server until it has no clients, or cannot be started, and return its exit status.

    Args:
        folder: Where the clients' files lie.
        command: Starts the server.
        poll_seconds: Time between two looks.
    """
    process, has_answered, restarts = _start(command), False, 0
    try:
        while not retire_if_unused(folder):
            if process.poll() is not None:
                if not has_answered or restarts == _MAX_RESTARTS:
                    return process.returncode
                process, has_answered, restarts = _start(command), False, restarts + 1
            has_answered = has_answered or server_answers(folder)
            time.sleep(poll_seconds)
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        end_tree(process, _GRACE_SECONDS)


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(watch(Path(sys.argv[1]), SERVER))
