"""Rows from one file: every type, and every way in which a file can be broken."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from data.files import file_suffix
from data.readers import read_file
from data.rows import Row

ROWS = [
    {"prompt": 'Wie geht\'s, "du"?', "response": "Gut,\tdanke\nund dir?"},
    {"prompt": "سلام", "response": "\U0001f469‍\U0001f680 日本"},
    {"prompt": "line\u2028separator", "response": "a, b; c"},
]


def table(delimiter: str) -> bytes:
    """The rows as CSV or TSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "response"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet() -> bytes:
    """The rows as Parquet."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[], bytes]] = {
    ".jsonl": lambda: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(),
    ".ndjson": lambda: "\n\n".join(json.dumps(row) for row in ROWS).encode(),
    ".json": lambda: json.dumps(ROWS, indent=2).encode(),
    ".csv": lambda: table(","),
    ".tsv": lambda: table("\t"),
    ".parquet": parquet,
}


def read(tmp_path: Path, name: str, content: bytes) -> list[Row]:
    """Write a file and read its rows."""
    path = tmp_path / name
    path.write_bytes(content)
    return list(read_file(path))


def message(tmp_path: Path, name: str, content: bytes) -> str:
    """Write a file and return the error, without the folder."""
    with pytest.raises(DataError) as error:
        read(tmp_path, name, content)
    text = str(error.value)
    assert text.count(";") >= 2, "found; needed; what to do"
    return text.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_every_type_gives_the_same_rows(tmp_path: Path, suffix: str, gz: str) -> None:
    content = WRITERS[suffix]()
    rows = read(tmp_path, f"rows{suffix}{gz}", gzip.compress(content, mtime=0) if gz else content)
    assert [row.values for row in rows] == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_byte_order_mark_is_no_content(tmp_path: Path, suffix: str) -> None:
    rows = read(tmp_path, f"rows{suffix}", b"\xef\xbb\xbf" + WRITERS[suffix]())
    assert [row.values for row in rows] == ROWS


def test_origins_are_lines_of_the_file(tmp_path: Path) -> None:
    def origins(name: str, content: bytes) -> list[str]:
        return [row.origin.removeprefix(f"{tmp_path}/") for row in read(tmp_path, name, content)]

    assert origins("a.jsonl", b'{"a": 1}\n\n{"a": 2}\r\n{"a": 3}') == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:4"]
    assert origins("a.json", b'[\n  {"a":\n 1},\n\n {"a": 2}, {"a": 3}]\n') == [
        "a.json:2",
        "a.json:5",
        "a.json:5",
    ]
    # The header is line 1, and the first row's quoted newline makes it two lines long.
    assert origins("a.csv", b'a,b\n"x\ny",1\n\nz,2\n') == ["a.csv:2", "a.csv:5"]
    assert origins("a.parquet", parquet()) == [f"a.parquet: row {number}" for number in (1, 2, 3)]


def test_json_file_with_an_object_a_line_is_read_as_such(tmp_path: Path) -> None:
    assert [row.values for row in read(tmp_path, "a.json", b'{"a": 1}\n{"a": 2}\n')] == [{"a": 1}, {"a": 2}]


def test_long_csv_field_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", b"a\n" + b"x" * 200_000)[0].values == {"a": "x" * 200_000}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b"", "a.jsonl: the file has no rows; at least one is needed"),
        ("a.jsonl", b" \n\n", "a.jsonl: the file has no rows"),
        ("a.json", b" ", "a.json: the file has no rows"),
        ("a.json", b"[]", "a.json: the file has no rows"),
        ("a.csv", b"prompt,response\n", "a.csv: the file has no rows"),
        ("a.txt", b"x", "a.txt: files of this type cannot be read; .jsonl, .ndjson, .json"),
        ("a.jsonl", b'{"a": 1}\n{"a": 2\n', "a.jsonl:2: broken JSON (Expecting ',' delimiter at column 8)"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: a JSON list instead of an object"),
        ("a.json", b'[\n{"a": 1},\n{"a" 2}\n]', "a.json:3: broken JSON (Expecting ':' delimiter)"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', "a.json:2: broken JSON (Expecting ',' or ']')"),
        ("a.json", b'[{"a": 1},\n]', "a.json:2: broken JSON (Expecting value)"),
        ("a.json", b'[{"a": 1}]\n[', "a.json:2: broken JSON (Extra data)"),
        ("a.json", b'[{"a": 1}, "b"]', "a.json:1: a JSON str instead of an object"),
        ("a.json", b'{\n"data": []}', "a.json:1: broken JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: broken JSON (maximum recursion depth"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "caf\xe9"}\n', "a.jsonl:2: byte 21 of the file (0xe9) is not UTF-8"),
        ("a.csv", b"\xef\xbb\xbfa\ncaf\xe9\n", "a.csv:2: byte 8 of the file (0xe9) is not UTF-8"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "a.jsonl:1: text in UTF-16 (by its byte order mark)"),
        ("a.jsonl", b"\x00\x01\x02", "a.jsonl:1: binary content"),
        ("a.jsonl.gz", b'{"a": 1}\n', "a.jsonl.gz: damaged gzip file (Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12], "a.jsonl.gz: damaged gzip file"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "a.csv:3: 3 fields, but the header names 2 columns (`a`, `b`)"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: the header `a`, `a` names a column twice"),
        ("a.csv", b'a,b\n"x" y,2\n', "a.csv:2: broken table"),
        ("a.csv", b'a,b\n1,2\n"x\n', "a.csv:3: broken table (unexpected end of data)"),
        ("a.parquet", b"PAR1 nonsense", "a.parquet: damaged Parquet file"),
    ],
)  # fmt: skip
def test_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert message(tmp_path, name, content).startswith(expected)


def test_missing_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.jsonl: cannot be read \(No such file or directory\); "):
        list(read_file(tmp_path / "gone.jsonl"))


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.JSONL.GZ", ".jsonl"), ("a.json", ".json"), ("a.gz", ""), ("jsonl", ""), ("a.b.tsv", ".tsv")],
)
def test_suffix_without_gz(name: str, suffix: str) -> None:
    assert file_suffix(Path(name)) == suffix


def test_errors_of_the_consumer_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    rows: Any = read_file(path)
    with pytest.raises(OSError, match="disk full"):
        for _ in rows:
            raise OSError("disk full")
