"""DeepSpeed's compiled operators, loaded so that a killed run cannot block the runs after it.

DeepSpeed has torch compile an operator when a process group starts on the CPU. torch guards the folder of that build
by a file, which stays when the process is killed, and every later process waits for its end without a word. Here a
lock that ends with its process guards a folder of our own, and whoever holds it removes torch's file.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from stages.models.cache import cache_dir, locked

_FOLDER_VARIABLE = "TORCH_EXTENSIONS_DIR"


def operators_dir() -> Path:
    """Where the operators are built, for this Python and this torch."""
    return cache_dir() / "torch_extensions" / f"python{platform.python_version()}-torch{torch.__version__}"


def load_deepspeed_operators() -> None:
    """Compile or load what DeepSpeed's process group needs; to be called on every rank before the group is made.

    Compiling takes half a minute, once a machine. Nothing happens where the accelerator needs no operator.
    """
    from deepspeed.comm.torch import build_shm_op

    folder = operators_dir()
    with locked(folder / "in-use"), _built_in(folder):
        for left in folder.glob("*/lock"):
            left.unlink()
        build_shm_op()  # DeepSpeed keeps the operator, and does not load it again


@contextmanager
def _built_in(folder: Path) -> Iterator[None]:
    """Have torch build there, whatever the user has set for other programs."""
    before = os.environ.get(_FOLDER_VARIABLE)
    os.environ[_FOLDER_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FOLDER_VARIABLE]
        else:
            os.environ[_FOLDER_VARIABLE] = before
