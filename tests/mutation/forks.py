"""Children forked from one process that has imported the heavy libraries, so that each costs its work alone."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

CRASHED = 70
"""Exit status of a child whose work raised (EX_SOFTWARE of sysexits.h)."""


class _Child(NamedTuple):
    deadline: float
    done: Callable[[int | None], None]


class Forks:
    """Forked children, at most as many at a time as asked for."""

    def __init__(self, jobs: int, *, timeout_seconds: float) -> None:
        """Start none yet.

        Args:
            jobs: Children at a time.
            timeout_seconds: A child that takes longer is killed.
        """
        self._jobs = jobs
        self._timeout_seconds = timeout_seconds
        self._running: dict[int, _Child] = {}

    def start(self, work: Callable[[], int], done: Callable[[int | None], None]) -> None:
        """Fork a child once a place is free.

        Args:
            work: Called in the child, silenced; gives the exit status.
            done: Called in this process with the exit status, or with None where the time was over.
        """
        while len(self._running) >= self._jobs:
            self._reap()
        sys.stdout.flush()
        process_id = os.fork()
        if process_id:
            self._running[process_id] = _Child(time.monotonic() + self._timeout_seconds, done)
            return
        status = CRASHED
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            status = work()
        finally:
            os._exit(status)

    def finish(self) -> None:
        """Wait for all children."""
        while self._running:
            self._reap()

    def _reap(self) -> None:
        """Take the children that have ended, and end those past their time."""
        for process_id, child in list(self._running.items()):
            ended, status = os.waitpid(process_id, os.WNOHANG)
            if ended:
                del self._running[process_id]
                child.done(os.waitstatus_to_exitcode(status))
            elif time.monotonic() > child.deadline:
                os.kill(process_id, signal.SIGKILL)
                os.waitpid(process_id, 0)
                del self._running[process_id]
                child.done(None)
        time.sleep(0.001)
