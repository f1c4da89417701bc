"""Files that could run code when they are read: found by name and by their first bytes, and never loaded.

A pickle is a program: who loads one runs it (https://docs.python.org/3/library/pickle.html). An artifact has no use
for any, since weights are safetensors and everything else is JSON or text; so a pickle in one was planted. Knows
nothing of what the files are for, and imports no torch.
"""

import zipfile
from pathlib import Path

from data.errors import ArtifactError

_SUFFIXES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"})
_ZIP, _NUMPY = b"PK\x03\x04", b"\x93NUMPY"
# PROTO opcode and protocol, which protocol 2 (2003) and every later one begin with. Older pickles have no such mark;
# what loads them looks for one of the names above.
_PROTOCOLS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


def pickle_reason(path: Path) -> str | None:
    """Why a file may hold a pickle, or None where it holds none. Reads its first bytes and a ZIP's list of names."""
    if path.suffix.lower() in _SUFFIXES:
        return f"files named *{path.suffix.lower()} are read by unpickling"
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_PROTOCOLS):
        return "it begins as a pickle does"
    if start.startswith(_NUMPY):
        return "it is an array of numpy, which may hold a pickle"
    if start.startswith(_ZIP):
        return _zip_reason(path)
    return None


def check_no_pickle(folder: Path, files: list[Path]) -> None:
    """Refuse an artifact that holds what could run code when it is loaded.

    Args:
        folder: The artifact, for the message.
        files: Its files.

    Raises:
        ArtifactError: One of them may hold a pickle.
    """
    for path in files:
        reason = pickle_reason(path)
        if reason is not None:
            raise ArtifactError(
                f"{path}: an artifact holds no pickle, which can run code when it is loaded, and here {reason}; "
                f"weights in safetensors and JSON beside them are needed: remove {folder} and run the stage that "
                f"makes it again"
            )


def _zip_reason(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        return f"it begins as a ZIP archive does and cannot be read as one ({error})"
    held = [name for name in names if Path(name).suffix.lower() in _SUFFIXES]
    return f"it is a ZIP archive with {held[0]}, as torch.save writes it" if held else None
