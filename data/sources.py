"""Where rows come from: files, folders and globs on this machine, shipped samples, data sets of the hub.

`source_files` and `source_digest` are light: `rlhf validate` and the stage cache call them without torch.
"""

import glob
import hashlib
import importlib.resources
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data.config import RowsConfig, absolute_path
from data.errors import DataError
from data.files import SUFFIXES, check_regular, file_suffix, reason_of
from data.readers import read_file
from data.rows import Row
from data.shown import nearest, shown

SAMPLES_PREFIX = "samples:"


def read_rows(source: RowsConfig, config_dir: Path | None, *, name: str) -> Iterator[Row]:
    """Read the rows of a source, file after file in sorted order, at most `source.limit`.

    Args:
        source: What to read.
        config_dir: Folder of the configuration, for relative paths.
        name: The source's key in the configuration, e.g. `data.preferences`, for messages.

    Raises:
        DataError: A file is missing, empty or damaged, or the hub has no such data set.
    """
    rows = _hub_rows(source, name) if source.hub is not None else _file_rows(source, config_dir, name)
    return islice(rows, source.limit)


def source_files(source: RowsConfig, config_dir: Path | None, *, name: str = "data source") -> list[Path]:
    """The files of a source, sorted; none for a data set of the hub.

    Args:
        source: What is read.
        config_dir: Folder of the configuration, for relative paths.
        name: The source's key in the configuration, for messages.

    Raises:
        DataError: There is no such file, or the folder or glob holds none that can be read.
    """
    return [path for path, _ in _named_files(source, config_dir, name)]


def source_digest(source: RowsConfig, config_dir: Path | None, *, name: str = "data source") -> str:
    """SHA-256, in hexadecimal, of what a source holds.

    Files: their bytes and their names below the folder or glob, never the path on this machine. A data set of
    the hub: its id, configuration, split and revision; its bytes are not fetched for this.

    Raises:
        DataError: As `source_files`, or a file cannot be read.
    """
    if source.hub is not None:
        parts: list[Any] = ["hub", source.hub, source.config, source.split, source.revision]
    else:
        parts = ["files"]
        for path, label in _named_files(source, config_dir, name):
            try:
                with path.open("rb") as file:
                    parts.append([label, hashlib.file_digest(file, "sha256").hexdigest()])
            except OSError as error:
                raise DataError(
                    f"{path}: {name}: cannot be read ({reason_of(error)}); a readable file is needed; "
                    f"check its permissions"
                ) from None
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode(errors="surrogateescape")).hexdigest()


def _file_rows(source: RowsConfig, config_dir: Path | None, name: str) -> Iterator[Row]:
    for path, label in _named_files(source, config_dir, name):
        for row in read_file(path):
            yield replace(row, place=label + row.origin.removeprefix(str(path)))


def _named_files(source: RowsConfig, config_dir: Path | None, name: str) -> list[tuple[Path, str]]:
    """Files with the name that counts: relative to the folder, or to the folder that a glob's hits share."""
    if source.path is None:
        return []
    if source.path.startswith(SAMPLES_PREFIX):
        path = _sample(source.path.removeprefix(SAMPLES_PREFIX), name)
        return [(path, path.name)]
    try:
        path = absolute_path(source.path, config_dir)
        if path.is_dir():
            return _folder_files(path, name)
        if path.exists() or path.is_symlink():
            check_regular(path, name)
            return [(path, path.name)]
        if glob.has_magic(source.path):
            return _glob_files(source.path, config_dir, name)
    except (OSError, RuntimeError) as error:  # a folder that may not be entered, a name too long, an unknown `~user`
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise DataError(
            f"{shown(source.path, 200)}: {name}: cannot be looked up ({reason}); a path that may be read is needed; "
            f"correct `{name}.path` or the permissions"
        ) from None
    beside = (
        f" or beside the configuration in {config_dir}" if config_dir and not Path(source.path).is_absolute() else ""
    )
    raise DataError(
        f"{path}: {name}: there is no such file or folder in {Path.cwd()}{beside}; a file, folder or glob is "
        f"needed; correct `{name}.path`{_similar_file(path)}"
    )


def _similar_file(path: Path) -> str:
    """A hint at a file beside the missing one whose name is nearly the same."""
    with suppress(OSError):
        found = nearest(path.name, dict.fromkeys(sorted(os.listdir(path.parent))))
        if found:
            return f"; did you mean {path.parent / found}?"
    return ""


def _folder_files(folder: Path, name: str) -> list[tuple[Path, str]]:
    """Data files below a folder. Links to folders are not followed: they may lead in a circle."""
    found: dict[str, Path] = {}
    hidden = 0
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for path in (Path(parent) / each for each in files):
            if not file_suffix(path):
                continue
            if path.name.startswith("."):
                hidden += 1
                continue
            check_regular(path, name)  # not left out in silence: a link that leads nowhere is lost data
            found[path.relative_to(folder).as_posix()] = path
    if not found:
        but = f" ({hidden} hidden ones are left out)" if hidden else ""
        raise DataError(
            f"{folder}: {name}: the folder holds no data file{but}; files with {', '.join(SUFFIXES)} are needed, "
            f"each also with .gz or .zst; correct `{name}.path`"
        )
    return [(found[label], label) for label in sorted(found)]


def _raise(error: OSError) -> None:
    raise error


def _glob_files(pattern: str, config_dir: Path | None, name: str) -> list[tuple[Path, str]]:
    roots = [Path()] if config_dir is None else [Path(), config_dir]
    for root in roots:  # an absolute pattern is the same under both
        paths = sorted(path for path in _glob(root / Path(pattern).expanduser(), name) if not path.is_dir())
        if paths:
            for path in paths:
                check_regular(path, name)
            shared = os.path.commonpath([path.parent for path in paths])
            return [(path, path.relative_to(shared).as_posix() if shared else path.as_posix()) for path in paths]
    raise DataError(f"{pattern}: {name}: no file matches this glob; at least one is needed; correct `{name}.path`")


def _glob(pattern: Path, name: str) -> Iterator[Path]:
    """As `glob.glob`, but `**` follows no link: two links in a circle would take it 2^40 steps."""
    plain = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
    folder, rest = Path(*pattern.parts[:plain]), Path(*pattern.parts[plain:])
    try:
        hits = folder.glob(str(rest))
        for path in hits:
            found = path.relative_to(folder).parts
            if not any(part.startswith(".") for part in found) or any(part.startswith(".") for part in rest.parts):
                yield path
    except ValueError as error:
        raise DataError(
            f"{pattern}: {name}: no glob ({error}); one with `**` standing alone between slashes is needed; correct "
            f"`{name}.path`"
        ) from None


def _sample(label: str, name: str) -> Path:
    folder = Path(str(importlib.resources.files("data"))) / "samples"
    shipped = sorted(path.name for path in folder.glob("*") if file_suffix(path)) if folder.is_dir() else []
    for candidate in (label, f"{label}.jsonl"):
        if candidate in shipped:
            return folder / candidate
    raise DataError(
        f"{SAMPLES_PREFIX}{label}: {name}: no such sample is shipped; one of these is needed: "
        f"{', '.join(shipped) or 'none'}; correct `{name}.path`"
    )


def _hub_rows(source: RowsConfig, name: str) -> Iterator[Row]:
    import datasets  # late: it takes seconds, and files on this machine do without
    import httpx

    assert source.hub is not None
    where = f"{source.hub}[{source.split}]"
    try:
        selection = {}
        if source.config is not None:
            known = datasets.get_dataset_config_names(source.hub, revision=source.revision)
            selection = {"name" if source.config in known else "data_dir": source.config}
        dataset = datasets.load_dataset(
            source.hub, split=source.split, revision=source.revision, streaming=source.streaming, **selection
        )
        rows = enumerate(dataset, 1)
        first = next(rows, None)  # a stream is opened by its first row
    # RuntimeError: data sets that are scripts, which are not executed. DatasetsError: files of it are damaged.
    except (OSError, ValueError, RuntimeError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{where}: {name}: the data set cannot be loaded from the hub ({shown(str(error), 300)}); an existing id, "
            f"configuration and split, and a connection or a filled cache, are needed; correct `{name}`, or "
            f"download the files and set `{name}.path`"
        ) from None
    if first is not None:
        for number, values in chain([first], rows):
            yield Row(dict(values), f"{where}: row {number}")
