"""A trainer's checkpoint is looked through before a library may load it, since DeepSpeed's loader unpickles anything.

What `Trainer` and PPO save are tensors and plain values. ZeRO's optimizer state names three data classes of DeepSpeed
besides, and the random states name numpy's arrays; DeepSpeed reads its files with `weights_only=False`. Here each file
is read by torch's restricted unpickler first, which runs nothing but what is listed, and a file that asks for anything
else is refused (https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only).
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from data.errors import ArtifactError

_PATTERNS = ("*.pt", "*.pth", "*.bin")
# How numpy restores the state of its random generator, an array of uint32.
_NUMPY: tuple[Any, ...] = (
    numpy.ndarray,
    numpy.dtype,
    type(numpy.dtype(numpy.uint32)),
    numpy.core.multiarray._reconstruct,  # type: ignore[attr-defined]
)


def check_checkpoint(folder: Path, classes: Sequence[type] = ()) -> None:
    """Refuse a checkpoint that needs more than tensors, plain values and the named classes.

    Args:
        folder: A checkpoint whose digests were verified, and that nobody else writes to.
        classes: Data classes that its files may name besides.

    Raises:
        ArtifactError: A file needs something else, or cannot be read.
    """
    for path in sorted(found for pattern in _PATTERNS for found in folder.rglob(pattern)):
        try:
            with torch.serialization.safe_globals([*_NUMPY, *classes]):
                # On no device: this is about what the file asks for, not about its tensors.
                torch.load(path, map_location="meta", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "class" in line), str(error))
            raise ArtifactError(
                f"{path}: a checkpoint holds tensors and plain values, and this file cannot be read as such "
                f"({reason.strip()[:200]}); remove the checkpoint, and the stage goes on from the one before it or "
                f"starts again"
            ) from error
