"""metrics.jsonl: one object a step, readable while it grows."""

import json
import math
from pathlib import Path

from stages.metrics import MetricsWriter, NullMetricsWriter, read_metrics


def test_rows_are_readable_while_the_file_is_open(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, {"policy/loss": 0.5})
        first = read_metrics(path)
        writer.write(2, {"policy/loss": 0.25})
    assert [(row["step"], row["policy/loss"]) for row in first] == [(1, 0.5)]
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2] and all(row["seconds"] >= 0 for row in rows)


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "m.jsonl") as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -1.0})
    text = (tmp_path / "m.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: f"not JSON: {name}")
    assert (row["a"], row["b"], row["c"]) == (None, None, -1.0)


def test_a_line_still_being_written_is_left_out_and_a_missing_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "po')
    assert read_metrics(path) == [{"step": 1}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_the_writer_appends_and_the_null_writer_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for step in (1, 2):
        with MetricsWriter(path) as writer:
            writer.write(step, {})
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    with NullMetricsWriter() as null:
        null.write(1, {"a": 1.0})
    assert list(tmp_path.iterdir()) == [path]
