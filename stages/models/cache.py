"""The folder of models that were converted once, and the lock under which that happens."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """The cache: `$RLHF_CACHE`, else `$XDG_CACHE_HOME/rlhf-pipeline`, else `~/.cache/rlhf-pipeline`."""
    if own := os.environ.get("RLHF_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "rlhf-pipeline"
    return Path.home() / ".cache" / "rlhf-pipeline"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; the kernel frees it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
