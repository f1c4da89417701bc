"""`rlhf ui`: Prefect's user interface on this machine."""

import argparse
import signal
import threading
from types import FrameType

from pipeline.server import lease_server


def ui(options: argparse.Namespace) -> int:
    """Start the shared server, or attach to it, and keep it until Ctrl-C or SIGTERM."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    lease = lease_server()
    try:
        print("starting the Prefect server ...", flush=True)
        lease.wait_until_healthy(cancelled=ended)
        login = f"\nlogin, which the page asks for once: {lease.login}" if lease.login else ""
        print(f"runs: {lease.ui_url}/runs{login}\nCtrl-C ends it", flush=True)
        ended.wait()
    finally:
        lease.release()
    return 0
