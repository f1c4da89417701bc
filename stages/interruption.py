"""SIGTERM and Ctrl-C: a stage that trains finishes the step in work and keeps it before it ends."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ANNOUNCEMENT = b"ending: a training step in work is finished and kept first; ask again to end at once\n"
_STANDARD_ERROR = 2

_Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        """Say which signal it was."""
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that the signal ended."""
        return 128 + self.number


class Interruption:
    """Whether a stage was asked to end while it may not be cut off."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.number: int | None = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note the first request to end instead of raising it; a second one is raised.

        What runs inside asks for `number` where it can stop. In a thread that is not the main one nothing changes:
        Python handles signals in the main thread alone.
        """

        def note(number: int, frame: FrameType | None) -> None:
            if self.number is not None:
                raise Interrupted(number)
            self.number = number
            announce()

        with _handling(note):
            yield

    def raise_if_asked(self) -> None:
        """End here if somebody asked.

        Raises:
            Interrupted: Somebody did.
        """
        if self.number is not None:
            raise Interrupted(self.number)


@contextmanager
def raising() -> Iterator[None]:
    """Have both signals raise `Interrupted`, so that everything is cleaned up on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handling(interrupt):
        yield


@contextmanager
def announcing() -> Iterator[None]:
    """As `raising`, and tell the user what is waited for."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        announce()
        raise Interrupted(number)

    with _handling(interrupt):
        yield


def announce() -> None:
    """Tell what a first request to end does. In a signal's handler: not by a stream, which may be in use."""
    os.write(_STANDARD_ERROR, _ANNOUNCEMENT)


@contextmanager
def _handling(handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
