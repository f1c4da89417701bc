"""Rows that are left out: counted by reason, written with place and content, and too many of them stop the run.

One JSON object a line: `{"source", "place", "reason", "row"}`. The place is below the source's folder and the order
is that of the rows, so the same data give the same bytes on every machine.
"""

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.files import reason_of
from data.rows import Row
from data.shown import shown

QUARANTINE = "quarantine.jsonl"
REASONS: dict[str, tuple[str, str]] = {
    "all_tied": (
        "two responses of different rank are needed, and here all are equal in rank or text",
        "rank the responses, or remove the rows",
    ),
    "broken_unicode": (
        "whole characters are needed, and these rows hold one half of a pair that JSON wrote as two",
        "write the file again from its source, and cut texts between characters",
    ),
    "contradicting_pair": (
        "one verdict on two responses is needed, and these pairs stand in the file both ways round",
        "decide which response is better, or leave both rows out",
    ),
    "duplicate": ("each row is needed once, and these repeat earlier ones", "remove the repeated rows"),
    "empty_prompt": (
        "a prompt with text is needed",
        "fill the prompts, or read text without prompts with `format: text`",
    ),
    "empty_response": ("a response with text is needed", "fill the responses, or remove the rows"),
    "empty_turn": ("text in each turn of user and assistant is needed", "fill or remove the empty turns"),
    "ends_without_response": (
        "conversations that end with the assistant's turn are needed in `chosen` and `rejected`",
        "cut the conversations after the responses to compare",
    ),
    "equal_responses": (
        "two different responses are needed, and here `chosen` and `rejected` are the same but for outer space",
        "check that both columns were written from different responses",
    ),
    "message_without_text": (
        "text in each message is needed, and here the content is null",
        "remove tool calls without text, or write them as text",
    ),
    "no_assistant_turn": ("an assistant's turn to learn from is needed", "add the responses to the conversations"),
    "no_counterpart": (
        "a good and a bad response to the same prompt are needed to compare, and these prompts have one of the two",
        "label more responses to these prompts, or use the good ones as demonstrations",
    ),
    "no_turns": (
        "turns are needed: a list of messages that is not empty, or a transcript that starts with `Human:`",
        "repair the conversations, or set another `format`",
    ),
    "no_user_turn": ("a user's turn is needed", "add what the assistant answers"),
    "prompt_ends_with_assistant": (
        "prompts that end with the user's turn are needed",
        "move the assistant's last turn from the prompt into the response",
    ),
    "prompts_differ": (
        "`chosen` and `rejected` that answer the same prompt are needed, and these part before the assistant's turn",
        "pair responses to one prompt",
    ),
    "starts_without_user": ("conversations that the user begins are needed", "remove the assistant's first turn"),
    "system_turn_in_the_middle": (
        "system text at the start alone is needed, since chat templates refuse it elsewhere",
        "move it to the start, or into the user's turn",
    ),
    "too_long": (
        "a million characters in a row at most are needed, since no step of training holds more",
        "cut these texts into parts, or check how the rows are parted",
    ),
    "too_many_responses": (
        "64 responses in a row at most are needed, since every two of them make a pair",
        "leave out some of the responses",
    ),
    "turns_do_not_alternate": (
        "turns of user and assistant in alternation are needed",
        "join neighbouring turns of one speaker",
    ),
}
"""What each reason says is needed, and what to do."""

_NUM_SHOWN = 3
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out.

    Attributes:
        row: The row as it was read.
        reason: One word with underscores, under which it is counted.
        note: What else a reader wants to know, e.g. which row it repeats.
    """

    row: Row
    reason: str
    note: str = ""


def count_reasons(skipped: Iterable[Skipped]) -> Counter[str]:
    """Number of rows by reason."""
    return Counter(each.reason for each in skipped)


def check_share(skipped: Sequence[Skipped], num_rows: int, max_share: float, *, name: str, quarantine: Path) -> None:
    """Stop where more rows are skipped than may be, and leave them in a file.

    Args:
        skipped: Those of one source.
        num_rows: Rows of the source, skipped ones included.
        max_share: Largest share that may be skipped, in [0, 1].
        name: The source's key in the configuration, e.g. `data.preferences`.
        quarantine: Where to write the skipped rows.

    Raises:
        DataError: The share is larger.
    """
    if len(skipped) <= max_share * num_rows:
        return
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(count_reasons(skipped).items()))
    first = ", ".join(f"{each.row.origin} {each.reason}" for each in skipped[:_NUM_SHOWN])
    where = leave_quarantine(quarantine, name, skipped)
    needed, remedy = REASONS[count_reasons(skipped).most_common(1)[0][0]]
    raise DataError(
        f"{name}: {len(skipped)} of {num_rows} rows would be skipped ({reasons}): {first}; {needed}; {remedy} "
        f"({where}), or raise `data.max_skipped_share` from {max_share:.4g}"
    )


def leave_quarantine(path: Path, name: str, skipped: Iterable[Skipped]) -> str:
    """Write the skipped rows of a source that stops a run; there will be no artifact to hold them.

    Args:
        path: The file.
        name: The source's key in the configuration.
        skipped: The rows.

    Returns:
        Where they are, for a message. That the file cannot be written must not hide what is wrong with the data.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_quarantine(path, ((name.removeprefix("data."), each) for each in skipped))
    except OSError as error:
        return f"they could not be written to {path}: {reason_of(error)}"
    return f"all of them are in {path}"


def write_quarantine(path: Path, skipped: Iterable[tuple[str, Skipped]]) -> None:
    """Write skipped rows, each with the name of its source.

    Args:
        path: The file; nothing is written where no row was skipped, so that no file says that all were used.
        skipped: Pairs of source and row.
    """
    lines = [_line(source, each) for source, each in skipped]
    if lines:
        path.write_bytes(b"".join(lines))


def _line(source: str, each: Skipped) -> bytes:
    found = {"source": source, "place": each.row.place or each.row.origin, "reason": each.reason}
    if each.note:
        found["note"] = each.note
    text = json.dumps({**found, "row": _plain(each.row.values)}, ensure_ascii=False, sort_keys=True)
    # Halves of characters, which UTF-8 cannot hold, become JSON's own escapes.
    return text.encode("utf-8", errors="backslashreplace") + b"\n"


def _plain(value: Any, depth: int = 0) -> Any:
    """A value in the types of JSON; the rest (of Parquet: bytes, times) as text."""
    if depth > _MAX_DEPTH:
        return "(nested too deeply to show)"
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case dict():
            return {str(key): _plain(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, depth + 1) for item in value]
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return shown(repr(value), 1000)
