"""Rows of every format to records."""

import json
from collections import Counter
from typing import Any

import pytest

from data.config import RecordFormat
from data.errors import DataError
from data.formats import (
    chosen_demonstrations,
    parse_demonstrations,
    parse_preferences,
    parse_prompts,
    prompts_of,
)
from data.recognition import recognise_format
from data.rows import Row
from data.schema import Demonstration, Message, PreferencePair, PromptRecord

HH = {
    "chosen": "\n\nHuman: Was ist 2+2?\n\nAssistant: Vier.\n\nHuman: Sicher?\n\nAssistant: Ja \U0001f44d",
    "rejected": "\n\nHuman: Was ist 2+2?\n\nAssistant: Vier.\n\nHuman: Sicher?\n\nAssistant: لا أعرف",
}
HH_PROMPT = (
    Message(role="user", content="Was ist 2+2?"),
    Message(role="assistant", content="Vier."),
    Message(role="user", content="Sicher?"),
)


def rows(*values: dict[str, Any]) -> list[Row]:
    """Rows of a file."""
    return [Row(value, f"f.jsonl:{number}") for number, value in enumerate(values, 1)]


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user turn."""
    return (Message(role="user", content=text),)


def turn(role: str, content: str) -> dict[str, str]:
    """A message as rows hold it."""
    return {"role": role, "content": content}


def error_of(kind: str, *values: dict[str, Any], **options: Any) -> str:
    """The message with which a source is refused."""
    parsers: dict[str, Any] = {
        "demonstrations": parse_demonstrations,
        "preferences": parse_preferences,
        "prompts": parse_prompts,
    }
    parse = parsers[kind]
    with pytest.raises(DataError) as error:
        parse(rows(*values), name=f"data.{kind}", **options)
    assert str(error.value).count(";") >= 2, "found; needed; what to do"
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "record_format", "expected"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "instruction", (user("Add.\n\n1, 2"), "3")),
        ({"instruction": "سلام", "input": "", "output": "\U0001f600"}, "instruction",
         (user("سلام"), "\U0001f600")),
        ({"instruction": "a", "output": "b", "text": "a b"}, "instruction", (user("a"), "b")),
        ({"prompt": "The film ", "response": " was fun.\n"}, "prompt_response", ("The film ", " was fun.\n")),
        ({"prompt": [turn("user", "a")], "response": "b"}, "prompt_response", (user("a"), "b")),
        ({"text": "All of it."}, "text", ("", "All of it.")),
        ({"messages": [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]}, "messages",
         (user("a"), "b")),
        (HH, "hh", (HH_PROMPT, "Ja \U0001f44d")),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference", ("p", "a")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("explicit", [True, False])
def test_demonstrations(row: dict[str, Any], record_format: RecordFormat, expected: Any, explicit: bool) -> None:
    parsed = parse_demonstrations(
        rows(row), name="data.demonstrations", record_format=record_format if explicit else "auto"
    )
    assert parsed.records == [Demonstration(prompt=expected[0], response=expected[1])]
    assert recognise_format(rows(row)[0], "demonstrations", name="x") == record_format


OPENING = [turn("system", "s"), turn("user", "q")]
OPENED = (Message(role="system", content="s"), *user("q"))


@pytest.mark.parametrize(
    ("row", "prompt", "margin"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "q", None),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "0.5"}, "q", 0.5),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}, "q", 2.0),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": ""}, "q", None),
        ({"prompt": OPENING, "chosen": "a", "rejected": "b"}, OPENED, None),
        ({"prompt": OPENING, "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]},
         OPENED, None),
        # Implicit prompt: the conversations share a prefix.
        ({"chosen": [*OPENING, turn("assistant", "a")], "rejected": [*OPENING, turn("assistant", "b")]},
         OPENED, None),
        # The prompt stands in front of the responses and in a column of its own, as in UltraFeedback.
        ({"prompt": "q", "chosen": [turn("user", "q"), turn("assistant", "a")],
          "rejected": [turn("user", "q"), turn("assistant", "b")]}, user("q"), None),
        ({"prompt": "q", "chosen": [*OPENING, turn("assistant", "a")],
          "rejected": [*OPENING, turn("assistant", "b")]}, OPENED, None),
        ({"prompt": OPENING, "chosen": [*OPENING, turn("assistant", "a")],
          "rejected": [*OPENING, turn("assistant", "b")]}, OPENED, None),
        ({"prompt": "q", "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]},
         user("q"), None),
    ],
)  # fmt: skip
def test_preferences(row: dict[str, Any], prompt: Any, margin: float | None) -> None:
    parsed = parse_preferences(rows(row), name="data.preferences")
    assert parsed.records == [PreferencePair(prompt=prompt, chosen="a", rejected="b", margin=margin)]
    assert not parsed.skipped
    assert parse_prompts(rows(row), name="data.prompts").records == [PromptRecord(prompt=prompt)]


def test_hh_pair() -> None:
    parsed = parse_preferences(rows(HH), name="data.preferences")
    assert parsed.records == [PreferencePair(prompt=HH_PROMPT, chosen="Ja \U0001f44d", rejected="لا أعرف")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Once upon", "topic": "x", "response": 3}, "Once upon"),
        ({"prompt": "Once upon"}, "Once upon"),
        ({"instruction": "a", "input": "b"}, user("a\n\nb")),
        ({"messages": [turn("user", "a")]}, user("a")),
        ({"messages": [turn("user", "a"), turn("assistant", "b")]}, user("a")),
        (HH, HH_PROMPT),
    ],
)
def test_prompts(row: dict[str, Any], prompt: Any) -> None:
    assert parse_prompts(rows(row), name="data.prompts").records == [PromptRecord(prompt=prompt)]


def test_hh_transcripts_in_json_survive_a_round_trip() -> None:
    pair = parse_preferences(rows(json.loads(json.dumps(HH))), name="data.preferences").records[0]
    again = PreferencePair.from_json(pair.to_json())
    text = "".join(f"\n\n{'Human' if m.role == 'user' else 'Assistant'}: {m.content}" for m in again.prompt)  # type: ignore[union-attr]
    assert text + f"\n\nAssistant: {again.chosen}" == HH["chosen"]
    assert text + f"\n\nAssistant: {again.rejected}" == HH["rejected"]


def test_columns_are_renamed_before_the_format() -> None:
    row = {"question": "q", "answer": "a", "prompt": "unused"}
    parsed = parse_demonstrations(
        rows(row), name="data.demonstrations", columns={"prompt": "question", "response": "answer"}
    )
    assert parsed.records == [Demonstration(prompt="q", response="a")]
    swapped = parse_preferences(
        rows({"prompt": "q", "chosen": "a", "rejected": "b"}),
        name="data.preferences",
        columns={"chosen": "rejected", "rejected": "chosen"},
    )
    assert swapped.records == [PreferencePair(prompt="q", chosen="b", rejected="a")]


def test_rows_that_teach_nothing_are_counted_by_reason() -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    parsed = parse_preferences(
        rows(
            good,
            good | {"chosen": " "},
            good | {"rejected": None},
            good | {"rejected": "a "},
            good | {"prompt": "\n"},
            good | {"chosen": "\ud83d"},
            good | {"prompt": [turn("user", "x"), turn("assistant", "y")]},
            good | {"prompt": []},
        ),
        name="data.preferences",
    )
    assert len(parsed.records) == 1
    assert parsed.skipped == Counter(
        empty_response=2,
        equal_responses=1,
        empty_prompt=1,
        broken_unicode=1,
        prompt_ends_with_assistant=1,
        no_turns=1,
    )


def test_skipped_demonstrations_and_prompts() -> None:
    parsed = parse_demonstrations(
        rows(
            {"instruction": "a", "output": "b"},
            {"instruction": "a", "output": ""},
            {"instruction": " ", "output": "b"},
            {"instruction": "\udc00", "output": "b"},
        ),
        name="data.demonstrations",
    )
    assert len(parsed.records) == 1
    assert parsed.skipped == Counter(empty_response=1, empty_prompt=1, broken_unicode=1)
    prompts = parse_prompts(rows({"prompt": "a"}, {"prompt": ""}), name="data.prompts")
    assert prompts.skipped == Counter(empty_prompt=1)
    talk = parse_demonstrations(
        rows(
            {"messages": [turn("user", "a"), turn("assistant", "b")]},
            {"messages": [turn("user", "a")]},
        ),
        name="data.demonstrations",
    )
    assert talk.skipped == Counter(no_assistant_turn=1)


def test_equal_responses_still_hold_a_prompt_and_a_demonstration() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "a"}
    assert len(parse_prompts(rows(row), name="data.prompts").records) == 1
    assert len(parse_demonstrations(rows(row), name="data.demonstrations").records) == 1


def test_missing_column_names_line_and_columns() -> None:
    message = error_of("demonstrations", {"prompt": "a", "response": "b"}, {"prompt": "a", "answer": "b"})
    assert message == (
        "f.jsonl:2: data.demonstrations: column `response` is missing, the row has `prompt`, `answer`; "
        "format `prompt_response` needs it; repair the row, or name the column that holds it: "
        "`data.demonstrations.columns: {response: present}`"
    )


@pytest.mark.parametrize(
    ("kind", "row", "options", "expected"),
    [
        ("demonstrations", {"question": "a", "answer": "b"}, {},
         "f.jsonl:1: data.demonstrations: no format of demonstrations fits the columns `question`, `answer`; "
         "needed are instruction and output (instruction); prompt and response (prompt_response)"),
        ("demonstrations", {}, {}, "no format of demonstrations fits the columns none"),
        ("prompts", {"text": "a"}, {}, "fits the columns `text`; needed are prompt (prompt)"),
        ("preferences", {"prompt": "a", "response": "b"}, {}, "no format of preferences fits the columns"),
        ("preferences", {"chosen": "a", "rejected": "b"}, {},
         "`chosen` and `rejected` need a `prompt`, unless"),
        ("preferences", {"chosen": "a", "rejected": "b"}, {"record_format": "preference"},
         "f.jsonl:1: data.preferences: column `prompt` is missing, the row has `chosen`, `rejected`"),
        ("preferences", {"prompt": "a"}, {"record_format": "instruction"},
         "rows of format `instruction` hold no preferences; one of preference, hh, sharegpt, ranking, labeled"),
        ("prompts", {"text": "a"}, {"record_format": "text"}, "rows of format `text` hold no prompts"),
        ("prompts", {"a": "b"}, {"columns": {"prompt": "c"}},
         "f.jsonl:1: data.prompts: column `c` is missing, the row has `a`; `data.prompts.columns` needs it"),
        ("demonstrations", {"prompt": "a", "response": 3}, {},
         "f.jsonl:1: data.demonstrations: column `response` holds a int (3); text is needed"),
        ("demonstrations", {"prompt": {"a": "b" * 99}, "response": "c"}, {}, "column `prompt` holds a dict"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, {},
         "f.jsonl:1: data.preferences: column `margin` holds a str ('big'); a finite number is needed"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("inf")}, {},
         "column `margin` holds a float (inf)"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "a"}, {},
         "data.preferences: no preferences are left of the rows up to f.jsonl:1 (equal_responses: 1); "
         "at least one usable row"),
        ("preferences", {"chosen": "x", "rejected": "y"}, {"record_format": "hh"}, "f.jsonl:1 (no_turns: 1)"),
    ],
)  # fmt: skip
def test_refused_sources(kind: str, row: dict[str, Any], options: dict[str, Any], expected: str) -> None:
    assert expected in error_of(kind, row, **options)


def test_no_rows_at_all() -> None:
    assert "data.prompts: no prompts are left (no rows)" in error_of("prompts")


def test_derivations() -> None:
    pairs = [PreferencePair(prompt="q", chosen="a", rejected="b", margin=1.0)]
    assert chosen_demonstrations(pairs) == [Demonstration(prompt="q", response="a")]
    assert prompts_of(pairs) == [PromptRecord(prompt="q")]
    assert prompts_of([Demonstration(prompt="", response="a"), Demonstration(prompt="q", response="a")]) == [
        PromptRecord(prompt="q")
    ]
