"""Locks between processes that end with their holder, however that one ends, and leave no file behind.

`flock` on a file: the operating system lets go of it when the process is gone. Needs a file system on which it works
between all machines that share the folder (local ones do; NFS from version 4 on).
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_POLL_SECONDS = 0.2


def try_lock(path: Path, holder: str = "") -> TextIO | None:
    """Take the lock of a path.

    Args:
        path: A file that is made for this, in a folder that exists.
        holder: Who takes it, for others to read.

    Returns:
        What `release` wants; None where another process has it.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        if not _flock(file, fcntl.LOCK_EX):
            file.close()
            return None
        if _is_same(file, path):
            _name_holder(file, holder)
            return file
        file.close()  # its holder has removed it between our opening and locking it


def release(file: TextIO, path: Path) -> None:
    """Let go, and leave no file: who waits for this one looks at the path again."""
    path.unlink(missing_ok=True)
    file.close()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with path.open("r", encoding="utf-8") as file:
            return not _flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, holder: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock; wait for who has it.

    Args:
        path: As for `try_lock`.
        holder: As for `try_lock`.
        on_wait: Called once, with who has it, before waiting.
    """
    told = False
    while (file := try_lock(path, holder)) is None:
        if not told:
            on_wait(_read(path))
            told = True
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        release(file, path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except FileNotFoundError:
        return "another process"


def _name_holder(file: TextIO, holder: str) -> None:
    with suppress(OSError):  # on a full disk the lock holds without a name; `rlhf gc` needs it to make room
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), holder.encode())


def _flock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(file: TextIO, path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
