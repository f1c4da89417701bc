"""Whatever bytes a data file holds: rows, records or a `DataError`, and nothing else. Bounded and the same every time.

What a run of these with more examples found is kept as plain tests in `test_odd_rows.py`.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.formats import parse_demonstrations, parse_preferences, parse_prompts
from data.quarantine import Skipped, write_quarantine
from data.readers import read_file
from data.rows import Row
from data.schema import Demonstration

SUFFIXES = [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz"]
PARSERS: list[Callable[..., Any]] = [parse_demonstrations, parse_preferences, parse_prompts]
ROWS = [
    {"prompt": "Wie geht's?", "chosen": "Gut,\tdanke\nund dir?", "rejected": "سلام"},
    {"prompt": "line\u2028separator", "chosen": "\U0001f469‍\U0001f680", "rejected": '"quoted"'},
    {"prompt": "third", "chosen": "a", "rejected": "b"},
]


def bounded(examples: int) -> Callable[[Any], Any]:
    """Settings of a run that is the same every time."""
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


@cache
def valid(suffix: str) -> bytes:
    """The rows as a file of this type."""
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
        return buffer.getvalue()
    if suffix in (".csv", ".tsv"):
        return table(ROWS, "," if suffix == ".csv" else "\t")
    if suffix == ".json":
        return json.dumps(ROWS, indent=1, ensure_ascii=False).encode()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    return gzip.compress(lines, mtime=0) if suffix.endswith(".gz") else lines


def table(rows: list[dict[str, str]], delimiter: str) -> bytes:
    """Rows with the same columns as CSV or TSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def rows_or_error(path: Path, content: bytes) -> list[Row]:
    """The rows of a file; none where it is refused. The message has its three parts."""
    path.write_bytes(content)
    try:
        return list(read_file(path))
    except DataError as error:
        assert str(error).count(";") >= 2, error
        str(error).encode()  # can be printed and logged
        return []


def records_or_error(rows: list[Row], quarantine: Path) -> None:
    """Make records of every kind; what is skipped can be written."""
    for parse in PARSERS:
        try:
            parsed = parse(rows, name="data.x")
        except DataError as error:
            assert str(error).count(";") >= 2, error
            str(error).encode()
            continue
        assert len(parsed.records) + len(parsed.quarantine) + parsed.num_repeats == len(rows)
        for record in parsed.records:
            assert type(record).from_json(record.to_json().encode().decode()) == record
        write_quarantine(quarantine, (("x", each) for each in parsed.quarantine))


@pytest.mark.parametrize("suffix", SUFFIXES)
@bounded(60)
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes(tmp_path: Path, suffix: str, content: bytes) -> None:
    records_or_error(rows_or_error(tmp_path / f"a{suffix}", content), tmp_path / "q.jsonl")


@pytest.mark.parametrize("suffix", SUFFIXES)
@bounded(60)
@given(data=st.data())
def test_damaged_files(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    content = bytearray(valid(suffix))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["cut", "flip", "insert", "repeat"])):
            case "cut":
                del content[at:]
            case "flip" if at < len(content):
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case _:
                lines = bytes(content).splitlines(keepends=True)
                content += lines[at % len(lines)] if lines else b""
    records_or_error(rows_or_error(tmp_path / f"a{suffix}", bytes(content)), tmp_path / "q.jsonl")


any_text = st.text(st.characters(), max_size=6)  # with lone surrogates
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt", "", "x"]) | json_values
messages = st.lists(
    st.fixed_dictionaries({"role": roles, "content": any_text | json_values}) | json_values, min_size=1, max_size=5
)
transcripts = st.lists(st.sampled_from(["\n\nHuman:", "\n\nAssistant:", " a", "", "\n"]), max_size=6).map("".join)
cells = any_text | messages | transcripts | json_values
objects = st.dictionaries(
    st.sampled_from(["prompt", "response", "chosen", "rejected", "text", "messages", "instruction", "input", "output",
                     "margin"]) | any_text,
    cells, max_size=5,
)  # fmt: skip


@bounded(200)
@given(values=st.lists(objects, min_size=1, max_size=4))
def test_arbitrary_objects_become_records_or_are_refused(tmp_path: Path, values: list[dict[str, Any]]) -> None:
    records_or_error([Row(each, f"f:{n}") for n, each in enumerate(values)], tmp_path / "q.jsonl")
    content = "\n".join(json.dumps(each) for each in values).encode()
    assert [row.values for row in rows_or_error(tmp_path / "a.jsonl", content)] == values


@bounded(120)
@given(values=st.lists(st.fixed_dictionaries({"prompt": messages, "chosen": cells, "rejected": cells}), min_size=1))
def test_arbitrary_conversations_become_records_or_are_refused(tmp_path: Path, values: list[dict[str, Any]]) -> None:
    records_or_error([Row(each, f"f:{n}") for n, each in enumerate(values)], tmp_path / "q.jsonl")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
special = st.sampled_from(["\U0001f469‍\U0001f680", "سلام", "a\u2028b", "\ufeff", "\x00", "é", "\x85", '"', "\r\n"])
exact_rows = st.lists(st.fixed_dictionaries({"prompt": texts | special, "response": texts | special}), min_size=1)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
@bounded(40)
@given(rows=exact_rows)
def test_rows_come_back_exactly(tmp_path: Path, suffix: str, rows: list[dict[str, str]]) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in (".csv", ".tsv"):
        # A zero byte has no spelling in a table, and a lone carriage return ends a row for Python's reader.
        rows = [{name: text.replace("\x00", "").replace("\r", "") + "." for name, text in row.items()} for row in rows]
        content = table(rows, "," if suffix == ".csv" else "\t")
    elif suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        content = buffer.getvalue()
    elif suffix == ".json":
        content = json.dumps(rows, ensure_ascii=False).encode()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        content = gzip.compress(content) if suffix.endswith(".gz") else content
    path.write_bytes(content)
    assert [row.values for row in read_file(path)] == rows


@bounded(60)
@given(text=texts, at=st.integers(0, 8))
def test_half_a_character_is_never_in_a_record(text: str, at: int) -> None:
    broken = text[:at] + "\ud83d" + text[at:]
    rows = [Row({"prompt": "q", "response": broken}, "f:1"), Row({"prompt": "p", "response": "r"}, "f:2")]
    parsed = parse_demonstrations(rows, name="data.demonstrations")
    assert parsed.records == [Demonstration(prompt="p", response="r")]
    assert parsed.quarantine == [Skipped(rows[0], "broken_unicode")]
