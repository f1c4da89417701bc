"""Conversations in rows: lists of messages, and the transcripts of Anthropic's HH-RLHF.

    Human: ...

    Assistant: ...

A transcript has no escape for its own markers: a turn begins wherever a blank line is followed by `Human:` or
`Assistant:`. A marker in the middle of a line is text.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from data.errors import DataError
from data.rows import Row
from data.schema import Message, Role
from data.shown import shown

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLE_NAMES: dict[str, Role] = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "gpt": "assistant", "chatgpt": "assistant",  # ShareGPT, with keys `from` and `value`
    "function_call": "assistant", "observation": "tool", "function_response": "tool",
}  # fmt: skip


class SkippedRow(Exception):
    """A row that teaches nothing; the text is the reason under which it is counted."""


def starts_like_hh(text: str) -> bool:
    """Whether a text starts with a turn marker of HH-RLHF."""
    return _TURN.match(text) is not None


def parse_hh_turns(text: str) -> tuple[Message, ...]:
    """Cut an HH-RLHF transcript into messages.

    White space around a turn is dropped. Neighbouring turns of one speaker become one, joined by a blank
    line, and empty turns but the last vanish: chat templates refuse both.

    Args:
        text: The transcript.

    Returns:
        At least one message.

    Raises:
        SkippedRow: The text does not start with a turn.
    """
    markers = list(_TURN.finditer(text))
    if not markers or markers[0].start() != 0:
        raise SkippedRow("no_turns")
    ends = [marker.start() for marker in markers[1:]] + [len(text)]
    merged: list[Message] = []
    for marker, end in zip(markers, ends, strict=True):
        role: Role = "user" if marker[1] == "Human" else "assistant"
        content = text[marker.end() : end].strip()
        if not content and end != len(text):
            continue
        if merged and merged[-1].role == role:
            content = "\n\n".join(part for part in (merged.pop().content, content) if part)
        merged.append(Message(role=role, content=content))
    return tuple(merged)


def common_prompt(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[tuple[Message, ...], str, str]:
    """Split two conversations into what they share and the two responses.

    The prompt is the longest common prefix of messages, and the responses are the assistant turns that follow
    it. Where a conversation goes on after that turn, the rest is dropped: it answers something else.

    Returns:
        The prompt, the chosen and the rejected response.

    Raises:
        SkippedRow: A conversation ends without a response, or they part at another turn than the assistant's.
    """
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise SkippedRow("ends_without_response")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    turns = (chosen[shared], rejected[shared])
    if any(turn.role != "assistant" for turn in turns):
        raise SkippedRow("prompts_differ")
    if turns[0] == turns[1] and len(chosen) != len(rejected):
        raise SkippedRow("prompts_differ")  # one goes on where the other ends
    return tuple(chosen[:shared]), turns[0].content, turns[1].content


def check_turns(prompt: Sequence[Message]) -> None:
    """Check that the turns of a prompt are in an order that every chat template can write.

    System text stands at the start alone. User and assistant alternate, the user first and last; tools answer an
    assistant's turn and may stand last too.

    Args:
        prompt: At least one message.

    Raises:
        SkippedRow: The order is another one, or a turn says nothing.
    """
    turns = prompt[1:] if prompt[0].role == "system" else prompt
    roles = [turn.role for turn in turns]
    if "system" in roles:
        raise SkippedRow("system_turn_in_the_middle")
    if "user" not in roles:
        raise SkippedRow("no_user_turn")
    if roles[0] != "user":
        raise SkippedRow("starts_without_user")
    if roles[-1] == "assistant":  # a chat template would put a second assistant turn behind it
        raise SkippedRow("prompt_ends_with_assistant")
    for before, after in pairwise(roles):
        if before == after != "tool" or (before, after) in (("user", "tool"), ("tool", "user")):
            raise SkippedRow("turns_do_not_alternate")
    if any(not turn.content.strip() for turn in turns):
        raise SkippedRow("empty_turn")


def parse_messages(row: Row, column: str, name: str) -> tuple[Message, ...]:
    """Read a list of messages, `{role, content}` or ShareGPT's `{from, value}`.

    Args:
        row: The row.
        column: The column that holds the list.
        name: The source's key in the configuration, for messages.

    Returns:
        The messages, at least one.

    Raises:
        DataError: The value is no such list.
        SkippedRow: The list is empty, or a message has no text (a bare tool call).
    """
    value = row.values[column]
    if not isinstance(value, list):
        raise _wrong(row, column, name, f"a {type(value).__name__}")
    if not value:
        raise SkippedRow("no_turns")
    return tuple(_message(item, index, row, column, name) for index, item in enumerate(value))


def _message(item: Any, index: int, row: Row, column: str, name: str) -> Message:
    if not isinstance(item, dict):
        raise _wrong(row, column, name, f"a {type(item).__name__} at {index}")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or role not in _ROLE_NAMES:
        raise _wrong(row, column, name, f"the role {shown(repr(role), 60)} at {index}")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if content is None:
        raise SkippedRow("message_without_text")
    if not isinstance(content, str):
        raise _wrong(row, column, name, f"a {type(content).__name__} as content at {index}")
    return Message(role=_ROLE_NAMES[role], content=content)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _wrong(row: Row, column: str, name: str, found: str) -> DataError:
    return DataError(
        f"{row.origin}: {name}: column `{column}` holds {found}; a list of messages "
        f'{{"role": system, user, assistant or tool, "content": text}} is needed; repair the row'
    )
