"""Tokens of a data set, kept by content: another training on the same records does not make them again.

    <store>/tokens/<digest of the data set>-<key>.npz

The key is of the tokenizer (vocabulary, special tokens, chat template), of the split, of the code that makes tokens and
of the versions of the packages that it asks. Files are written whole or not at all, hold plain arrays, and are read
with their checksums; one that cannot be read is made again. `rlhf gc` removes those of data sets that no run uses.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import zipfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import assistant_turns, batch_encoding, chat
from data.batch_encoding import Ids
from stages.leftovers import TOKENS_SUFFIX

logger = logging.getLogger(__name__)

Arrays = Mapping[str, npt.NDArray[Any]]

_PACKAGES = ("tokenizers", "transformers", "jinja2")
_CODE = (assistant_turns, batch_encoding, chat)


def cached_arrays(folder: Path | None, digest: str, tokenizer: Any, what: str, make: Callable[[], Arrays]) -> Arrays:
    """Arrays from the cache, or made and put there.

    Args:
        folder: Where tokens are kept; None keeps nothing.
        digest: Of the artifact with the records.
        tokenizer: That makes the tokens. Of one without a fast backend nothing is kept: what it does is not in a file.
        what: Which records of the artifact, and in which form; a change of the arrays' meaning needs another word.
        make: Makes them.
    """
    if folder is None or not tokenizer.is_fast:
        return make()
    path = folder / f"{digest}-{_key(tokenizer, what)}{TOKENS_SUFFIX}"
    found = _read(path)
    if found is not None:
        logger.info("tokens of %s: taken from %s", what, path)
        return found
    made = make()
    _write(path, made)
    return made


def pack_rows(name: str, rows: Sequence[Ids]) -> dict[str, npt.NDArray[Any]]:
    """Rows of ids as one array of 32-bit integers, and where each row ends."""
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    values = np.empty(int(ends[-1]) if len(rows) else 0, dtype=np.int32)
    start = 0
    for row, end in zip(rows, ends.tolist(), strict=True):
        values[start:end] = row
        start = end
    return {f"{name}.values": values, f"{name}.ends": ends}


def unpack_rows(name: str, arrays: Arrays) -> list["array[int]"]:
    """The inverse of `pack_rows`."""
    values, ends = arrays[f"{name}.values"], arrays[f"{name}.ends"].tolist()
    return [array("i", values[start:end].tobytes()) for start, end in zip([0, *ends], ends, strict=False)]


def pack_texts(name: str, texts: Sequence[str | None]) -> dict[str, npt.NDArray[Any]]:
    """Short texts, as the bytes of a JSON list."""
    return {name: np.frombuffer(json.dumps(list(texts)).encode(), dtype=np.uint8)}


def unpack_texts(name: str, arrays: Arrays) -> list[str | None]:
    """The inverse of `pack_texts`."""
    texts: list[str | None] = json.loads(arrays[name].tobytes())
    return texts


def pack_numbers(name: str, numbers: Sequence[float | None]) -> dict[str, npt.NDArray[Any]]:
    """Numbers, of which some are not there."""
    return {name: np.array([np.nan if number is None else number for number in numbers], dtype=np.float64)}


def unpack_numbers(name: str, arrays: Arrays) -> list[float | None]:
    """The inverse of `pack_numbers`."""
    return [None if number != number else number for number in arrays[name].tolist()]


def _key(tokenizer: Any, what: str) -> str:
    parts = {
        "what": what,
        "class": type(tokenizer).__name__,
        "vocabulary": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
        "code": [hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest() for module in _CODE],
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {name: saved[name] for name in saved.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: not used, the tokens are made again: %s", path, error)
        return None


def _write(path: Path, arrays: Arrays) -> None:
    writing = path.with_name(f"{path.name}.{os.getpid()}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing.open("wb") as file:
            np.savez(file, **dict[str, Any](arrays))
        os.replace(writing, path)
    except OSError as error:  # the stage has what it needs
        writing.unlink(missing_ok=True)
        logger.warning("%s: the tokens are not kept: %s", path, error)
