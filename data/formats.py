"""Rows to records: the shapes in which public data sets write demonstrations, preferences and prompts.

A row without a needed column is an error, since the file is not what the configuration says. A row that
merely teaches nothing (empty, repeated or contradicting, turns out of order ...) is skipped and kept with its reason.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.cells import margin_in, prompt_in, reference_in, text_in
from data.config import FORMATS_BY_KIND, RecordFormat, SourceConfig, wrong_format
from data.conversations import (
    SkippedRow,
    check_turns,
    common_prompt,
    parse_hh_turns,
    parse_messages,
    starts_like_hh,
)
from data.errors import DataError
from data.parsed import NothingLeft, Parsed, R, distinct_records
from data.quarantine import REASONS, Skipped, leave_quarantine
from data.readers import Row
from data.schema import Demonstration, Kind, Message, PreferencePair, Prompt, PromptRecord, is_empty_prompt
from data.shown import nearest, shown_list

MAX_ROW_CHARS = 1_000_000
"""Most characters of a row: some 200 000 tokens, more than a step of training holds. The stages count in tokens."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "instruction": ("instruction", "output"),
    "prompt_response": ("prompt", "response"),
    "text": ("text",),
    "messages": ("messages",),
    "preference": ("chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "prompt": ("prompt",),
}
"""Columns that each format needs; `instruction` may have `input`, `preference` `prompt` and `margin`,
rows of prompts `reference`."""

_OWN_FORMATS: dict[Kind, tuple[str, ...]] = {
    "demonstrations": ("instruction", "prompt_response", "messages", "text"),
    "preferences": ("preference", "hh"),
    "prompts": ("prompt",),
}


@dataclass(frozen=True, slots=True)
class _Draft:
    """A row before it is known what is wanted of it."""

    prompt: Prompt
    response: str = ""
    rejected: str = ""
    margin: float | None = None
    reference: str | None = None


def parse_demonstrations(
    rows: Iterable[Row],
    *,
    name: str,
    record_format: RecordFormat = "auto",
    columns: Mapping[str, str] | None = None,
) -> Parsed[Demonstration]:
    """Read demonstrations; of a preference row, the chosen response.

    Args:
        rows: From `data.sources.read_rows`.
        name: The source's key in the configuration, e.g. `data.demonstrations`, for messages.
        record_format: How a row is read; `auto` decides by the first row.
        columns: New name to present name, applied before the format.

    Raises:
        DataError: A row lacks a column or holds something else in it, no format fits, or no row is left.
    """
    return _parse(rows, "demonstrations", _demonstration, name, record_format, columns or {})


def parse_preferences(
    rows: Iterable[Row],
    *,
    name: str,
    record_format: RecordFormat = "auto",
    columns: Mapping[str, str] | None = None,
) -> Parsed[PreferencePair]:
    """Read preference pairs. Arguments and errors as `parse_demonstrations`."""
    return _parse(rows, "preferences", _preference, name, record_format, columns or {})


def parse_prompts(
    rows: Iterable[Row],
    *,
    name: str,
    record_format: RecordFormat = "auto",
    columns: Mapping[str, str] | None = None,
) -> Parsed[PromptRecord]:
    """Read prompts, from rows of any format that has some. Arguments and errors as `parse_demonstrations`."""
    return _parse(rows, "prompts", _prompt, name, record_format, columns or {})


def parse_source(
    rows: Iterable[Row], kind: Kind, source: SourceConfig, *, quarantine: Path
) -> Parsed[Demonstration] | Parsed[PreferencePair] | Parsed[PromptRecord]:
    """Read the records of a kind as its source says.

    Args:
        rows: From `data.sources.read_rows`.
        kind: Which records.
        source: Says how a row is read.
        quarantine: Where to leave the rows if all of them are skipped.

    Raises:
        DataError: As `parse_demonstrations`.
    """
    name = f"data.{kind}"
    try:
        match kind:
            case "demonstrations":
                return parse_demonstrations(rows, name=name, record_format=source.format, columns=source.columns)
            case "preferences":
                return parse_preferences(rows, name=name, record_format=source.format, columns=source.columns)
            case "prompts":
                return parse_prompts(rows, name=name, record_format=source.format, columns=source.columns)
    except NothingLeft as error:
        if not error.quarantine:
            raise
        raise DataError(f"{error} ({leave_quarantine(quarantine, name, error.quarantine)})") from None


def chosen_demonstrations(pairs: Iterable[PreferencePair]) -> list[Demonstration]:
    """Derive demonstrations from preference pairs: the chosen responses."""
    return [Demonstration(prompt=pair.prompt, response=pair.chosen) for pair in pairs]


def prompts_of(records: Iterable[Demonstration | PreferencePair]) -> list[PromptRecord]:
    """Derive prompts from other records, without the empty ones: plain text to imitate has none."""
    return [PromptRecord(prompt=record.prompt) for record in records if not is_empty_prompt(record.prompt)]


def recognise_format(row: Row, kind: Kind, *, name: str) -> str:
    """Recognise the format of a row from its columns and, for HH-RLHF transcripts, its content.

    Args:
        row: The first row, columns renamed.
        kind: What is wanted of it.
        name: The source's key in the configuration, for messages.

    Raises:
        DataError: No format that gives this kind fits the columns.
    """
    found = row.values.keys()
    if {"chosen", "rejected"} <= found:
        values = (row.values["chosen"], row.values["rejected"])
        if "prompt" not in found and all(isinstance(value, str) and starts_like_hh(value) for value in values):
            return "hh"
        if "prompt" in found or not any(isinstance(value, str) for value in values):
            return "preference"
    for candidate in FORMATS_BY_KIND[kind]:
        if candidate not in ("preference", "hh") and found >= set(_needed(candidate, kind)):
            return candidate
    needed = "; ".join(f"{' and '.join(_needed(each, kind))} ({each})" for each in FORMATS_BY_KIND[kind])
    if {"chosen", "rejected"} <= found:
        needed += "; `chosen` and `rejected` need a `prompt`, unless they hold whole conversations"
    raise DataError(
        f"{row.origin}: {name}: no format of {kind} fits the columns {shown_list(row.values)}; needed are "
        f"{needed}; rename columns with `{name}.columns: {{{_nearest_needed(row, kind)}}}`, or set `{name}.format`"
    )


def _nearest_needed(row: Row, kind: Kind) -> str:
    """The renaming that a row with misspelt columns needs, as it stands in a configuration."""
    for candidate in FORMATS_BY_KIND[kind]:
        pairs = {column: nearest(column, row.values) for column in _needed(candidate, kind)}
        wrong = {column: near for column, near in pairs.items() if near != column}
        if all(pairs.values()) and wrong:
            return ", ".join(f"{column}: {near}" for column, near in wrong.items())
    return "needed: present"


def _parse(
    rows: Iterable[Row],
    kind: Kind,
    finish: Callable[[_Draft], R],
    name: str,
    record_format: str,
    columns: Mapping[str, str],
) -> Parsed[R]:
    if record_format != "auto" and record_format not in FORMATS_BY_KIND[kind]:
        raise DataError(wrong_format(name, record_format, kind))
    results: list[tuple[Row, R] | Skipped] = []
    last_row = ""
    for row in rows:
        last_row = f" of the rows up to {row.origin}"
        renamed = _rename(row, columns, name)
        if record_format == "auto":
            record_format = recognise_format(renamed, kind, name=name)
        for column in _needed(record_format, kind):
            if column not in renamed.values:
                near = nearest(column, renamed.values)
                raise DataError(
                    f"{row.origin}: {name}: column `{column}` is missing, the row has "
                    f"{shown_list(renamed.values)}; format `{record_format}` needs it; repair the row, or name "
                    f"the column that holds it: `{name}.columns: {{{column}: {near or 'present'}}}`"
                )
        try:
            draft = _draft(renamed, record_format, kind, name)
            if kind == "prompts":
                draft = replace(draft, reference=reference_in(renamed, name))
            _require_length(draft)
            results.append((row, finish(draft)))
        except SkippedRow as reason:
            results.append(Skipped(row, str(reason)))
    # Rows of a richer format repeat what is taken of them by nature: several pairs share a prompt or a response.
    parsed = distinct_records(results, repeats_are_natural=record_format not in _OWN_FORMATS[kind])
    if not parsed.records:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(parsed.skipped.items())) or "no rows"
        main = parsed.skipped.most_common(1)
        remedy = f": {REASONS[main[0][0]][0]}; {REASONS[main[0][0]][1]}" if main else ""
        raise NothingLeft(
            f"{name}: no {kind} are left{last_row} ({reasons}); at least one usable row is needed; check the "
            f"file, `{name}.format` and `{name}.columns`{remedy}",
            parsed.quarantine,
        )
    return parsed


def _needed(record_format: str, kind: Kind) -> tuple[str, ...]:
    """Columns that a row must have; for prompts the response may be absent."""
    needed = COLUMNS[record_format]
    return tuple(column for column in needed if column not in ("output", "response")) if kind == "prompts" else needed


def _rename(row: Row, columns: Mapping[str, str], name: str) -> Row:
    if not columns:
        return row
    for present in columns.values():
        if present not in row.values:
            near = nearest(present, row.values)
            raise DataError(
                f"{row.origin}: {name}: column `{present}` is missing, the row has {shown_list(row.values)}; "
                f"`{name}.columns` needs it; correct `{name}.columns` or the row"
                f"{f' (did you mean `{near}`?)' if near else ''}"
            )
    kept = {column: value for column, value in row.values.items() if column not in columns.values()}
    return replace(row, values=kept | {new: row.values[present] for new, present in columns.items()})


def _draft(row: Row, record_format: str, kind: Kind, name: str) -> _Draft:
    def text(column: str) -> str:
        return text_in(row, column, name)

    match record_format:
        case "instruction":
            parts = [text("instruction"), text("input")]
            content = "\n\n".join(part for part in parts if part.strip())
            return _Draft((Message(role="user", content=content),), text("output"))
        case "prompt_response":
            prompt = prompt_in(row, "prompt", name)
            if is_empty_prompt(prompt):  # plain text without prompts has a format of its own
                raise SkippedRow("empty_prompt")
            return _Draft(prompt, text("response"))
        case "text":
            return _Draft("", text("text"))
        case "messages":
            return _last_turn(parse_messages(row, "messages", name), kind)
        case "preference":
            return replace(_pair(row, name), margin=margin_in(row, name))
        case "hh":
            return _Draft(*common_prompt(parse_hh_turns(text("chosen")), parse_hh_turns(text("rejected"))))
        case _:
            return _Draft(prompt_in(row, "prompt", name))


def _last_turn(messages: Sequence[Message], kind: Kind) -> _Draft:
    """The last assistant turn is the response; what follows it answers nothing."""
    if kind == "prompts" and messages and messages[-1].role != "assistant":
        return _Draft(tuple(messages))
    for index in reversed(range(len(messages))):
        if messages[index].role == "assistant":
            return _Draft(tuple(messages[:index]), messages[index].content)
    raise SkippedRow("no_assistant_turn")


def _pair(row: Row, name: str) -> _Draft:
    prompt = prompt_in(row, "prompt", name) if "prompt" in row.values else None
    chosen, rejected = (prompt_in(row, column, name) for column in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise DataError(
                f"{row.origin}: {name}: column `prompt` is missing, the row has {shown_list(row.values)}; "
                f"`chosen` and `rejected` are plain text and need it; add it, or set `{name}.format: hh` if "
                "they hold transcripts"
            )
        return _Draft(prompt, chosen, rejected)
    return _Draft(*common_prompt(_conversation(prompt, chosen), _conversation(prompt, rejected)))


def _conversation(prompt: Prompt | None, response: Prompt) -> tuple[Message, ...]:
    """The whole conversation. Some data sets repeat the prompt in front of both responses, some do not."""
    if prompt is None:
        opening: tuple[Message, ...] = ()
    else:
        opening = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    turns = (Message(role="assistant", content=response),) if isinstance(response, str) else response
    repeated = isinstance(prompt, str) and len(turns) > 1 and opening[0] in turns[:-1]
    return turns if repeated or turns[: len(opening)] == opening else (*opening, *turns)


def _demonstration(draft: _Draft) -> Demonstration:
    _require(draft.response, "empty_response")
    return Demonstration(prompt=_checked(draft.prompt), response=_encodable(draft.response))


def _preference(draft: _Draft) -> PreferencePair:
    if is_empty_prompt(draft.prompt):
        raise SkippedRow("empty_prompt")
    _require(draft.response, "empty_response")
    _require(draft.rejected, "empty_response")
    if draft.response.strip() == draft.rejected.strip():
        raise SkippedRow("equal_responses")
    return PreferencePair(
        prompt=_checked(draft.prompt),
        chosen=_encodable(draft.response),
        rejected=_encodable(draft.rejected),
        margin=draft.margin,
    )


def _prompt(draft: _Draft) -> PromptRecord:
    if is_empty_prompt(draft.prompt):
        raise SkippedRow("empty_prompt")
    reference = None if draft.reference is None else _encodable(draft.reference)
    return PromptRecord(prompt=_checked(draft.prompt), reference=reference)


def _require_length(draft: _Draft) -> None:
    prompt = draft.prompt if isinstance(draft.prompt, str) else "".join(turn.content for turn in draft.prompt)
    if len(prompt) + len(draft.response) + len(draft.rejected) + len(draft.reference or "") > MAX_ROW_CHARS:
        raise SkippedRow("too_long")


def _require(text: str, reason: str) -> None:
    if not text.strip():
        raise SkippedRow(reason)


def _checked(prompt: Prompt) -> Prompt:
    if isinstance(prompt, str):
        return _encodable(prompt)
    if is_empty_prompt(prompt):
        raise SkippedRow("empty_prompt")
    check_turns(prompt)
    for turn in prompt:
        _encodable(turn.content)
    return prompt


def _encodable(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can spell (an emoji cut in two) but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SkippedRow("broken_unicode") from None
    return text
