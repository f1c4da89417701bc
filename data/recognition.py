"""Which format a row is in, by its columns and, for transcripts and labels, by what they hold."""

from data.config import FORMATS_BY_KIND, RecordFormat
from data.conversations import starts_like_hh
from data.errors import DataError
from data.rows import Row
from data.schema import Kind
from data.shown import nearest, shown_list

_COLUMNS: dict[RecordFormat, tuple[str, ...]] = {
    "instruction": ("instruction", "output"),
    "prompt_response": ("prompt", "response"),
    "text": ("text",),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "preference": ("chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "ranking": ("prompt", "responses"),
    "labeled": ("prompt", "response", "label"),
    "prompt": ("prompt",),
}


def needed_columns(record_format: RecordFormat, kind: Kind) -> tuple[str, ...]:
    """Columns that a row must have. For prompts the response may be absent; preferences need both sides."""
    needed = _COLUMNS[record_format]
    if kind == "prompts":
        return tuple(column for column in needed if column not in ("output", "response", "responses", "label"))
    return (*needed, "chosen", "rejected") if (record_format, kind) == ("sharegpt", "preferences") else needed


def recognise_format(row: Row, kind: Kind, *, name: str) -> RecordFormat:
    """Recognise the format of a row from its columns and, for HH-RLHF transcripts and labels, its content.

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
        if "prompt" not in found and "conversations" in found:
            return "sharegpt"
        if "prompt" not in found and all(isinstance(value, str) and starts_like_hh(value) for value in values):
            return "hh"
        if "prompt" in found or not any(isinstance(value, str) for value in values):
            return "preference"
    if {"prompt", "responses"} <= found and found & {"ranks", "scores"}:
        return "ranking"
    # Any table of texts may have a column named `label`; one of true and false is about the response.
    if {"prompt", "response"} <= found and isinstance(row.values.get("label"), bool):
        return "labeled"
    for candidate in FORMATS_BY_KIND[kind]:
        if candidate in ("preference", "hh", "ranking") or (candidate == "labeled" and kind != "preferences"):
            continue
        if found >= set(needed_columns(candidate, kind)):
            return candidate
    needed = "; ".join(f"{_told(candidate, kind)} ({candidate})" for candidate in FORMATS_BY_KIND[kind])
    if {"chosen", "rejected"} <= found:
        needed += "; `chosen` and `rejected` need a `prompt`, unless they hold whole conversations"
    raise DataError(
        f"{row.origin}: {name}: no format of {kind} fits the columns {shown_list(row.values)}; needed are "
        f"{needed}; rename columns with `{name}.columns: {{{_nearest_needed(row, kind)}}}`, or set `{name}.format`"
    )


def _told(record_format: RecordFormat, kind: Kind) -> str:
    needed = " and ".join(needed_columns(record_format, kind))
    return f"{needed} and ranks or scores" if record_format == "ranking" and kind != "prompts" else needed


def _nearest_needed(row: Row, kind: Kind) -> str:
    """The renaming that a row with misspelt columns needs, as it stands in a configuration."""
    for candidate in FORMATS_BY_KIND[kind]:
        pairs = {column: nearest(column, row.values) for column in needed_columns(candidate, kind)}
        wrong = {column: near for column, near in pairs.items() if near != column}
        if all(pairs.values()) and wrong:
            return ", ".join(f"{column}: {near}" for column, near in wrong.items())
    return "needed: present"
