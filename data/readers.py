"""Rows from one file: JSON, JSON lines, CSV and TSV; Parquet and Arrow are in `data.columnar`. Each may be packed.

Knows nothing of records: a row is a dictionary and the place it came from, which errors downstream name.
Every defect of a file is a `DataError` that names the line.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from data.columnar import read_arrow, read_parquet
from data.errors import DataError
from data.files import SUFFIXES, file_suffix, open_data_file, text_lines
from data.rows import Row
from data.shown import shown, shown_list

_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_MAX_CSV_FIELD_CHARS = 1 << 30  # the default of 131072 is shorter than some responses
_OTHER_DELIMITERS = ";\t|,"


def read_file(path: Path) -> Iterator[Row]:
    """Read the rows of one file, in order.

    Args:
        path: A file with one of `SUFFIXES`, or one of them and `.gz` or `.zst`.

    Yields:
        Its rows; at least one.

    Raises:
        DataError: The file is missing, empty, damaged, of an unknown type or not UTF-8.
    """
    match file_suffix(path):
        case ".json":
            rows = _read_json(path)
        case ".jsonl" | ".ndjson":
            rows = _read_json_lines(path)
        case ".csv":
            rows = _read_table(path, ",")
        case ".tsv":
            rows = _read_table(path, "\t")
        case ".parquet":
            rows = read_parquet(path)
        case ".arrow":
            rows = read_arrow(path)
        case _:
            raise DataError(
                f"{path}: files of this type cannot be read; {', '.join(SUFFIXES)} are needed, each also "
                f"with .gz or .zst; convert the file or rename it"
            )
    found = False
    for row in rows:
        found = True
        yield row
    if not found:
        raise DataError(f"{path}: the file has no rows; at least one is needed; fill it or leave the source out")


def _read_json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = _DECODER.decode(line.rstrip())
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                what = f"{error.msg} at column {error.colno}"
                remedy = "name it .json if it is one list" if line.strip() == "[" else "repair or remove the line"
            else:
                what, remedy = _what_and_remedy(error)
            raise DataError(
                f"{path}:{number}: broken JSON ({what}); one JSON object a line is needed; {remedy}"
            ) from None
        yield Row(_object(value, path, number), f"{path}:{number}")


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects. Many files named .json hold one object a line instead, so both are read."""
    with open_data_file(path) as file:
        head = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if head and not head.startswith(b"["):
        yield from _read_json_lines(path)
        return
    text = "".join(text_lines(path, bounded=False))
    if not text.strip():
        return
    try:
        for value, line in _json_items(text):
            yield Row(_object(value, path, line), f"{path}:{line}")
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: broken JSON ({error.msg}); a list of objects is needed; repair the file from "
            f"that line on"
        ) from None


def _json_items(text: str) -> Iterator[tuple[Any, int]]:
    """The items of a JSON list with the line where each starts, which `json.loads` would not tell."""

    def after_space(index: int) -> int:
        match = _JSON_SPACE.match(text, index)
        assert match is not None
        return match.end()

    index = after_space(text.index("[") + 1)
    line, counted = 1, 0
    if text[index : index + 1] != "]":
        while True:
            line, counted = line + text.count("\n", counted, index), index
            try:
                value, index = _DECODER.raw_decode(text, index)
            except json.JSONDecodeError:
                raise
            except (ValueError, RecursionError) as error:
                raise json.JSONDecodeError(_what_and_remedy(error)[0], text, index) from None
            yield value, line
            index = after_space(index)
            if text[index : index + 1] != ",":
                break
            index = after_space(index + 1)
    if text[index : index + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' or ']'", text, index)
    index = after_space(index + 1)
    if index != len(text):
        raise json.JSONDecodeError("Extra data", text, index)


class _UnclearJSONError(ValueError):
    """What other readers of JSON accept, and each in its own way: what it is, and what to write instead."""


def _what_and_remedy(error: Exception) -> tuple[str, str]:
    if isinstance(error, _UnclearJSONError):
        return error.args[0], error.args[1]
    return str(error), "shorten or remove the line"  # numbers and nesting without end


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _UnclearJSONError(f"the key `{shown(twice)}` stands twice in one object", "keep one of the two")
    return values


def _no_constant(name: str) -> NoReturn:
    raise _UnclearJSONError(f"{name} is no number of JSON", "write null or a number instead")


# Python's own reader takes the last of equal keys and reads NaN: both would hide that the file is not what it seems.
_DECODER = json.JSONDecoder(object_pairs_hook=_distinct_keys, parse_constant=_no_constant)


def _object(value: Any, path: Path, line: int) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(
        f"{path}:{line}: a JSON {type(value).__name__} instead of an object; rows of the form "
        f'{{"column": value}} are needed; convert the file'
    )


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CSV_FIELD_CHARS)
    reader = csv.reader(text_lines(path), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}:{line}: broken table ({error}); fields with quotes, delimiters or newlines must be "
                f"quoted; repair the row"
            ) from None
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = _header(fields, delimiter, f"{path}:{line}")
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{path}:{line}: {len(fields)} fields, but the header names {len(header)} columns "
                f"({shown_list(header)}); as many fields as columns are needed; quote fields that hold the "
                "delimiter"
            )
        yield Row(dict(zip(header, fields, strict=True)), f"{path}:{line}")


def _header(fields: list[str], delimiter: str, where: str) -> list[str]:
    header = [name.strip() for name in fields]
    if header[0].startswith(("{", "[")):
        raise DataError(
            f"{where}: JSON instead of a header ({shown(header[0])}); a table with one name a column in its first row "
            f"is needed; rename the file to .jsonl or .json"
        )
    others = [other for other in _OTHER_DELIMITERS if other != delimiter and other in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"{where}: one column named `{shown(header[0])}`: its fields are parted by {others[0]!r}; {delimiter!r} is "
            f"needed in a file of this type; convert it, or rename a table parted by tabs to .tsv"
        )
    if "" in header or len(set(header)) < len(header):
        raise DataError(
            f"{where}: the header {shown_list(header)} names a column twice or not at all; "
            f"a first row with one name a column is needed; repair the header"
        )
    return header
