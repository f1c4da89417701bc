"""Rows from one file: JSON, JSON lines, CSV, TSV and Parquet, each also gzipped.

Knows nothing of records: a row is a dictionary and the place it came from, which errors downstream name.
Every defect of a file is a `DataError` that names the line.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_MAX_CSV_FIELD_CHARS = 1 << 30  # the default of 131072 is shorter than some responses


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        values: Value by column.
        origin: Where it stands, for messages: `path:line`, or `path: row N` where there are no lines.
    """

    values: dict[str, Any]
    origin: str


def file_suffix(path: Path) -> str:
    """The suffix that says how a file is read, without `.gz`; empty when it is none that can be read."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read_file(path: Path) -> Iterator[Row]:
    """Read the rows of one file, in order.

    Args:
        path: A file with one of `SUFFIXES`, or one of them and `.gz`.

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
            rows = _read_parquet(path)
        case _:
            raise DataError(
                f"{path}: files of this type cannot be read; {', '.join(SUFFIXES)} are needed, each also "
                f"with .gz; convert the file or rename it"
            )
    found = False
    with _readable(path):
        for row in rows:
            found = True
            yield row
    if not found:
        raise DataError(f"{path}: the file has no rows; at least one is needed; fill it or leave the source out")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged gzip file ({error}); a complete one is needed; fetch or compress it again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); a readable file is needed; "
            f"check the path and its permissions"
        ) from None


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _lines(path: Path) -> Iterator[str]:
    """Decoded lines with their ends. Lines end at a newline only: U+2028 may stand inside a JSON string."""
    offset = 0
    with _open(path) as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if b"\0" in line or raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(
                    f"{path}:{number}: binary content, or text in UTF-16; UTF-8 text is needed; save it as "
                    f"UTF-8, or give the file the suffix of what it is"
                )
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + len(raw) - len(line) + error.start
                raise DataError(
                    f"{path}:{number}: byte {at} of the file (0x{line[error.start]:02x}) is not UTF-8; UTF-8 "
                    f"text is needed; convert it, e.g. `iconv -f latin1 -t utf-8`"
                ) from None
            offset += len(raw)


def _read_json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.rstrip())
        except (json.JSONDecodeError, RecursionError) as error:
            what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{path}:{number}: broken JSON ({what}); one JSON object a line is needed; repair or remove the line"
            ) from None
        yield Row(_object(value, path, number), f"{path}:{number}")


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects. Many files named .json hold one object a line instead, so both are read."""
    with _open(path) as file:
        head = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if head and not head.startswith(b"["):
        yield from _read_json_lines(path)
        return
    text = "".join(_lines(path))
    if not text.strip():
        return
    try:
        for value, line in _json_items(text):
            yield Row(_object(value, path, line), f"{path}:{line}")
    except (json.JSONDecodeError, RecursionError) as error:
        line, what = (error.lineno, error.msg) if isinstance(error, json.JSONDecodeError) else (1, str(error))
        raise DataError(
            f"{path}:{line}: broken JSON ({what}); a list of objects is needed; repair the file from that line on"
        ) from None


def _json_items(text: str) -> Iterator[tuple[Any, int]]:
    """The items of a JSON list with the line where each starts, which `json.loads` would not tell."""
    decoder = json.JSONDecoder()

    def after_space(index: int) -> int:
        match = _JSON_SPACE.match(text, index)
        assert match is not None
        return match.end()

    index = after_space(text.index("[") + 1)
    line, counted = 1, 0
    if text[index : index + 1] != "]":
        while True:
            line, counted = line + text.count("\n", counted, index), index
            value, index = decoder.raw_decode(text, index)
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


def _object(value: Any, path: Path, line: int) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(
        f"{path}:{line}: a JSON {type(value).__name__} instead of an object; rows of the form "
        f'{{"column": value}} are needed; convert the file'
    )


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CSV_FIELD_CHARS)
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
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
            header = [name.strip() for name in fields]
            if "" in header or len(set(header)) < len(header):
                raise DataError(
                    f"{path}:{line}: the header {header} names a column twice or not at all; "
                    f"a first row with one name a column is needed; repair the header"
                )
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{path}:{line}: {len(fields)} fields, but the header names {len(header)} columns "
                f"({', '.join(header)}); as many fields as columns are needed; quote fields that hold the "
                "delimiter"
            )
        yield Row(dict(zip(header, fields, strict=True)), f"{path}:{line}")


def _read_parquet(path: Path) -> Iterator[Row]:
    # Late: a quarter of a second, and only Parquet needs it.
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    with _open(path) as file:
        content = io.BytesIO(file.read())
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(content).iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"{path}: row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{path}: damaged Parquet file ({error}); a complete one is needed; fetch or write it again"
        ) from None
