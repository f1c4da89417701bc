"""The reference answers of prompts, from the rows of a file to the records of the data stage."""

from typing import Any

import pytest

from data.conversations import SkippedRow
from data.drafts import Draft, rewrite_texts
from data.errors import DataError
from data.formats import parse_prompts
from data.records import MAX_ROW_CHARS, prompts_in, require_length
from data.rows import Row
from data.schema import Message, PromptRecord


def records(*rows: dict[str, Any], **settings: Any) -> list[PromptRecord]:
    made = [Row(row, f"p.jsonl:{number}") for number, row in enumerate(rows, start=1)]
    return parse_prompts(made, name="data.prompts", **settings).records


def test_a_record_without_a_reference_is_written_as_before() -> None:
    assert PromptRecord(prompt="p").to_json() == '{"prompt": "p"}'
    record = PromptRecord(prompt="p", reference="\u56db")
    assert record.to_json() == '{"prompt": "p", "reference": "\u56db"}'
    assert PromptRecord.from_json(record.to_json()) == record


def test_references_are_read_from_their_column() -> None:
    found = records(
        {"prompt": "2 + 2", "reference": "4"}, {"prompt": "3 + 3", "reference": 6}, {"prompt": "a", "reference": None},
        {"prompt": "b", "reference": " "}, {"prompt": "c"},
    )  # fmt: skip
    assert [record.reference for record in found] == ["4", "6", None, None, None]


@pytest.mark.parametrize("column", ["answer", "ground_truth"])
def test_another_column_is_named(column: str) -> None:
    found = records({"question": "2 + 2", column: "4"}, columns={"prompt": "question", "reference": column})
    assert found == [PromptRecord(prompt="2 + 2", reference="4")]


def test_turns_may_have_a_reference() -> None:
    found = records({"messages": [{"role": "user", "content": "2 + 2"}], "reference": "4"})
    assert found == [PromptRecord(prompt=(Message(role="user", content="2 + 2"),), reference="4")]


@pytest.mark.parametrize("value", [True, 1.5, ["4"]])
def test_a_reference_is_text_or_a_whole_number(value: Any) -> None:
    with pytest.raises(DataError, match="column `reference` holds .*; text is needed"):
        records({"prompt": "p", "reference": value})


def test_a_reference_is_rewritten_with_the_other_texts_and_counts_for_the_length() -> None:
    draft = rewrite_texts(Draft("call Ann", reference="Ann"), lambda text: text.replace("Ann", "X"))
    assert prompts_in(draft) == (PromptRecord(prompt="call X", reference="X"),)
    with pytest.raises(SkippedRow, match="too_long"):
        require_length(Draft("p", reference="x" * MAX_ROW_CHARS))
    with pytest.raises(SkippedRow, match="broken_unicode"):
        prompts_in(Draft("p", reference="\ud83d"))
