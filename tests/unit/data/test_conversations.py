"""HH-RLHF transcripts and message lists, awkward ones included."""

from typing import Any

import pytest

from data.conversations import SkippedRow, common_prompt, parse_hh_turns, parse_messages, starts_like_hh
from data.errors import DataError
from data.rows import Row
from data.schema import Message


def turns(*texts: str) -> tuple[Message, ...]:
    """Messages that alternate, the user first."""
    return tuple(Message(role="assistant" if index % 2 else "user", content=text) for index, text in enumerate(texts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Hello.", turns("Hi", "Hello.")),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", turns("a", "b", "c", "d")),
        # No space, two spaces, and space at the end of a turn.
        ("\n\nHuman:Hi \n\nAssistant:  Hello. \n", turns("Hi", "Hello.")),
        # Blank lines belong to the turn; a marker inside a line, or after one newline, is text.
        (
            "\n\nHuman: a\n\nb Human: c\nAssistant: d\n\nAssistant: e",
            turns("a\n\nb Human: c\nAssistant: d", "e"),
        ),
        ("\n\nHuman: Say 'Human:'\n\nAssistant: Human: ok", turns("Say 'Human:'", "Human: ok")),
        # More than one blank line before a marker.
        ("\n\nHuman: a\n\n\n\nAssistant: b", turns("a", "b")),
        # Neighbouring turns of one speaker, as in harmless-base: 13 transcripts of 4624.
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant:  c", turns("a", "b\n\nc")),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", turns("a\n\nb", "c")),
        # Empty turns vanish, but the last is kept to be counted as an empty response.
        ("\n\nHuman: a\n\nAssistant: \n\nHuman: b\n\nAssistant: c", turns("a\n\nb", "c")),
        ("\n\nHuman: a\n\nAssistant:", turns("a", "")),
        # The first marker may stand at the start.
        ("Human: a\n\nAssistant: b", turns("a", "b")),
        (
            "\n\nHuman: سلام \U0001f469‍\U0001f680\n\nAssistant: שלום",
            turns("سلام \U0001f469‍\U0001f680", "שלום"),
        ),
        ("\n\nAssistant: a", (Message(role="assistant", content="a"),)),
    ],
)
def test_transcript(text: str, expected: tuple[Message, ...]) -> None:
    assert parse_hh_turns(text) == expected


@pytest.mark.parametrize("text", ["", "just text", "Preface\n\nHuman: a\n\nAssistant: b", "human: a"])
def test_text_that_does_not_start_with_a_turn(text: str) -> None:
    assert not starts_like_hh(text)
    with pytest.raises(SkippedRow, match="no_turns"):
        parse_hh_turns(text)


def test_common_prompt_of_a_usual_pair() -> None:
    assert common_prompt(turns("a", "b", "c", "d"), turns("a", "b", "c", "e")) == (
        turns("a", "b", "c"),
        "d",
        "e",
    )


def test_prompts_that_differ_fall_back_to_what_is_shared() -> None:
    longer = turns("a", "x", "c", "d")
    assert common_prompt(longer, turns("a", "y")) == (turns("a"), "x", "y")
    assert common_prompt(longer, turns("a", "y", "c", "d")) == (turns("a"), "x", "y")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (turns("a", "b"), turns("z", "b"), "prompts_differ"),
        (turns("a", "b", "c", "d"), turns("a", "b", "z", "d"), "prompts_differ"),
        (turns("a", "b", "c", "d"), turns("a", "b"), "prompts_differ"),
        (turns("a", "b", "c"), turns("a", "b"), "ends_without_response"),
        (turns("a", "b"), turns("a"), "ends_without_response"),
    ],
)
def test_pairs_that_cannot_be_used(chosen: Any, rejected: Any, reason: str) -> None:
    with pytest.raises(SkippedRow, match=reason):
        common_prompt(chosen, rejected)


def test_equal_conversations_share_all_but_the_response() -> None:
    assert common_prompt(turns("a", "b"), turns("a", "b")) == (turns("a"), "b", "b")


def parse(value: Any) -> tuple[Message, ...]:
    """Parse a column of one row."""
    return parse_messages(Row({"messages": value}, "f.jsonl:7"), "messages", "data.demonstrations")


def test_message_lists() -> None:
    assert parse([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == turns("a", "b")
    assert parse([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]) == turns("a", "b")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse([{"role": "user", "content": parts}]) == turns("ab")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "column `messages` holds a str; a list of messages"),
        (["text"], "column `messages` holds a str at 0"),
        ([{"role": "user", "content": "a"}, {"role": "boss", "content": "b"}], "holds the role 'boss' at 1"),
        ([{"content": "b"}], "holds the role None at 0"),
        ([{"role": "user", "content": 3}], "holds a int as content at 0"),
        ([{"role": "user", "content": [{"type": "image"}]}], "holds a list as content at 0"),
    ],
)
def test_what_is_no_message_list_is_named(value: Any, expected: str) -> None:
    with pytest.raises(DataError) as error:
        parse(value)
    assert str(error.value).startswith("f.jsonl:7: data.demonstrations: column `messages` ")
    assert expected in str(error.value)
    assert str(error.value).endswith("is needed; repair the row")


@pytest.mark.parametrize(
    ("value", "reason"),
    [([], "no_turns"), ([{"role": "assistant", "content": None}], "message_without_text")],
)
def test_message_lists_that_are_skipped(value: Any, reason: str) -> None:
    with pytest.raises(SkippedRow, match=reason):
        parse(value)
