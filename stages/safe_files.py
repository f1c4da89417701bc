"""Files that run code when they are read: pickles, by name and by content. None belongs into an artifact."""

import zipfile
from pathlib import Path

_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
_PICKLE_PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_ZIP = b"PK\x03\x04"


def pickled_files(folder: Path) -> list[str]:
    """Files below a folder that are pickles, or hold one, by their relative path.

    Protocols 0 and 1 have no mark by which to know them; nothing here reads a file as a pickle by its content.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path.relative_to(folder).as_posix() for path in files if _is_pickled(path)]


def _is_pickled(path: Path) -> bool:
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(len(_ZIP))
    if head[:2] in _PICKLE_PROTOCOLS:
        return True
    if head != _ZIP:
        return False
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format
            return any(name.endswith(".pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return True  # of what is cut off nothing good can be said
