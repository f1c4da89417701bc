"""`rlhf` in a process that kills itself (SIGKILL) at a named point, which nobody could hit from outside.

    python -m tests.chaos.victim POINT MATCH COUNT ARGS...

`POINT` is one of `POINTS`; the kill comes at its COUNT-th occurrence with a path that holds MATCH. The stage has to
run in this process (`launch.mode: inline`).
"""

import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

POINTS = ("write", "copy", "flush", "rename-before", "rename-after", "replace-before", "replace-after")
"""In the middle of a file that torch writes or that is copied; before a file is flushed; around a rename or replace."""


def arm(point: str, match: str, count: int) -> None:
    """Have this process killed."""
    left = [count]

    def hit(path: Any) -> bool:
        if match not in str(path):
            return False
        left[0] -= 1
        return left[0] == 0

    match_point: dict[str, Callable[[], None]] = {
        "write": lambda: _half_written(hit),
        "copy": lambda: _half_copied(hit),
        "flush": lambda: _around(os, "fsync", lambda descriptor: hit(_path_of(descriptor)), before=True),
        "rename-before": lambda: _around(os, "rename", lambda source, target: hit(target), before=True),
        "rename-after": lambda: _around(os, "rename", lambda source, target: hit(target), before=False),
        "replace-before": lambda: _around(os, "replace", lambda source, target: hit(target), before=True),
        "replace-after": lambda: _around(os, "replace", lambda source, target: hit(target), before=False),
    }
    match_point[point]()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _around(module: Any, name: str, hit: Callable[..., bool], *, before: bool) -> None:
    real = getattr(module, name)

    def dying(*arguments: Any, **options: Any) -> Any:
        now = hit(*arguments)
        if now and before:
            _die()
        result = real(*arguments, **options)
        if now:
            _die()
        return result

    setattr(module, name, dying)


def _half_written(hit: Callable[[Any], bool]) -> None:
    real = torch.save

    def dying(value: Any, target: Any, *arguments: Any, **options: Any) -> None:
        if hit(target):
            buffer = io.BytesIO()
            real(value, buffer, *arguments, **options)
            _leave_half(buffer.getvalue(), Path(target))
        real(value, target, *arguments, **options)

    torch.save = dying


def _half_copied(hit: Callable[[Any], bool]) -> None:
    real = shutil.copyfile

    def dying(source: Any, target: Any, **options: Any) -> Any:
        if hit(target):
            _leave_half(Path(source).read_bytes(), Path(target))
        return real(source, target, **options)

    shutil.copyfile = dying


def _leave_half(content: bytes, target: Path) -> None:
    target.write_bytes(content[: len(content) // 2])
    _die()


if __name__ == "__main__":
    arm(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    from pipeline.cli import main

    sys.exit(main(sys.argv[4:]))
