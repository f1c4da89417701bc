"""A folder that cannot be written: told apart from other failures, and said in the user's words."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from data.errors import StorageError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL_BYTES = 1 << 20
"""torch and safetensors lose the error's number: with less than this free, a failed write is put down to the disk."""

_LIBRARY_ERRORS = {"RuntimeError", "SafetensorError"}


def storage_error(error: BaseException, folder: Path) -> StorageError | None:
    """What to tell the user where a write below a folder failed for want of room or permission.

    Call it before anything is cleaned up, which would make room.

    Args:
        error: What was raised.
        folder: Where the process writes.

    Returns:
        The error to raise instead; None where the cause is another.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            return _no_room(folder)
        if isinstance(cause, OSError) and cause.errno in _NOT_WRITABLE and _is_below(cause.filename, folder):
            return StorageError(
                f"{cause.filename}: cannot be written ({cause.strerror}); a folder that this user may write is "
                f"needed; correct its permissions, or give another one with --output-dir DIR"
            )
        if any(kind.__name__ in _LIBRARY_ERRORS for kind in type(cause).__mro__) and _free(folder) < _FULL_BYTES:
            return _no_room(folder)
    return None


def check_room(folder: Path, needed_bytes: int) -> None:
    """Refuse a folder on a file system with less room than this.

    Args:
        folder: It, or the folders above it, exist.
        needed_bytes: At least this much has to be free.

    Raises:
        StorageError: There is less.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if _free(there) < needed_bytes:
        raise StorageError(
            f"{folder}: {_size(_free(there))} free on this file system; at least {_size(needed_bytes)} are needed for "
            f"a run; free some (`rlhf gc` lists what no run uses), or give another folder with --output-dir DIR"
        )


def _no_room(folder: Path) -> StorageError:
    return StorageError(
        f"{folder}: no space left on its file system ({_size(_free(folder))} free of "
        f"{_size(shutil.disk_usage(folder).total)}); room for artifacts, checkpoints and logs is needed; free some "
        f"(`rlhf gc` lists what no run uses), then go on with `rlhf resume`"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 10:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1


def _is_below(name: object, folder: Path) -> bool:
    return isinstance(name, str | Path) and Path(name).absolute().is_relative_to(folder.absolute())


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
