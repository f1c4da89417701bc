"""The process above the shared Prefect server: it ends the server when nobody uses it any more.

    python -m pipeline.server_watch FOLDER

A run that ends by itself stops the server it was the last to use. One that is killed cannot; its client file names a
process that is gone, which is seen here.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from pipeline.server import retire_if_unused
from stages.process_tree import end_tree

SERVER = [sys.executable, "-m", "prefect", "server", "start"]
_POLL_SECONDS = 1.0
_GRACE_SECONDS = 10.0


def watch(folder: Path, command: list[str], poll_seconds: float = _POLL_SECONDS) -> int:
    """Run the server until it ends or has no clients, and return its exit status.

    Args:
        folder: Where the clients' files lie.
        command: Starts the server.
        poll_seconds: Time between two looks.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None and not retire_if_unused(folder):
            time.sleep(poll_seconds)
        return process.returncode or 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        end_tree(process, _GRACE_SECONDS)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(watch(Path(sys.argv[1]), SERVER))
