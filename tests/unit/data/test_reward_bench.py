"""Benchmark files: pairs with their subset, whatever shape the rows have; what is no pair is counted."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.errors import DataError
from data.reward_bench import read_bench
from data.schema import Message, PreferencePair
from tests.unit.stages.data.test_data_stage import write

ROWS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "好", "rejected": "b", "subset": "hep-go", "id": 7, "chosen_model": "m"},
    {"prompt": "q", "chosen": "好", "rejected": "b", "subset": "hep-go", "id": 8, "chosen_model": "m"},
    {"prompt": "q", "chosen": "b", "rejected": "好", "subset": " math-prm ", "id": 9, "chosen_model": "m"},
    {"prompt": "q", "chosen": "b", "rejected": " ", "subset": "math-prm", "id": 9, "chosen_model": "m"},
]


def test_each_row_counts_even_those_that_training_would_leave_out(tmp_path: Path) -> None:
    found = read_bench(write(tmp_path / "rows.jsonl", ROWS))
    good = PreferencePair(prompt="q", chosen="好", rejected="b", source="hep-go")
    opposite = PreferencePair(prompt="q", chosen="b", rejected="好", source="math-prm")
    assert found.pairs == [good, good, opposite]
    assert found.skipped == {"empty_response": 1}
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert read_bench(str(tmp_path / "rows.parquet")) == found


def test_rows_of_messages_and_without_subsets(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi"}]
    row = {
        "chosen": [*said, {"role": "assistant", "content": "Yes."}],
        "rejected": [*said, {"role": "assistant", "content": "No."}],
    }
    (pair,) = read_bench(write(tmp_path / "rows.jsonl", [row])).pairs
    assert pair == PreferencePair(
        prompt=(Message(role="user", content="Hi"),), chosen="Yes.", rejected="No.", source="all"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}], r":1: a row of format `ranking`; a benchmark"),
        ([ROWS[0], {"prompt": "q", "chosen": "a"}], r":2: column `rejected` is missing, which the rows before it"),
        ([ROWS[0] | {"subset": 3}], r":1: `subset` holds int; the subset's name is needed"),
        ([ROWS[3]], r"^rows\.jsonl: holds no pair \(empty_response: 1\); rows with `prompt`"),
    ],
    ids=["ranking", "missing_column", "subset_of_numbers", "nothing_left"],
)
def test_what_is_no_benchmark(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_bench(write(tmp_path / "rows.jsonl", rows))
