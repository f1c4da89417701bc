"""Rows to records: the shapes in which public data sets write demonstrations, preferences and prompts.

A row without a needed column is an error, since the file is not what the configuration says. A row that
merely teaches nothing (empty, repeated or contradicting, turns out of order ...) is skipped and kept with its reason.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.cells import reference_in
from data.config import FORMATS_BY_KIND, RecordFormat, RowsConfig, wrong_format
from data.conversations import SkippedRow
from data.drafts import Draft, read_draft
from data.errors import DataError
from data.parsed import NothingLeft, Parsed, R, Read, distinct_records
from data.quarantine import REASONS, Skipped, leave_quarantine
from data.recognition import needed_columns, recognise_format
from data.records import (
    demonstrations_of,
    pair_labeled,
    preferences_of,
    prompts_in,
    require_length,
    require_usable_response,
)
from data.rows import Row
from data.schema import Demonstration, Kind, PreferencePair, PromptRecord, is_empty_prompt
from data.shown import nearest, shown_list

_OWN_FORMATS: dict[Kind, tuple[RecordFormat, ...]] = {
    "demonstrations": ("instruction", "prompt_response", "messages", "sharegpt", "text"),
    "preferences": ("preference", "hh", "sharegpt", "ranking"),
    "prompts": ("prompt",),
}
"""Formats whose rows hold one record each; rows of others repeat what is taken of them by nature: several pairs share
a prompt or a response."""


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
    outcomes = _outcomes(rows, "demonstrations", demonstrations_of, name, record_format, columns or {})
    return _whole(distinct_records([outcomes])[0], "demonstrations", name)


def parse_preferences(
    rows: Iterable[Row],
    *,
    name: str,
    record_format: RecordFormat = "auto",
    columns: Mapping[str, str] | None = None,
) -> Parsed[PreferencePair]:
    """Read preference pairs. Arguments and errors as `parse_demonstrations`."""
    outcomes = _outcomes(rows, "preferences", preferences_of, name, record_format, columns or {})
    return _whole(distinct_records([outcomes])[0], "preferences", name)


def parse_prompts(
    rows: Iterable[Row],
    *,
    name: str,
    record_format: RecordFormat = "auto",
    columns: Mapping[str, str] | None = None,
) -> Parsed[PromptRecord]:
    """Read prompts, from rows of any format that has some. Arguments and errors as `parse_demonstrations`."""
    outcomes = _outcomes(rows, "prompts", prompts_in, name, record_format, columns or {})
    return _whole(distinct_records([outcomes])[0], "prompts", name)


def parse_sources(
    sources: Sequence[tuple[str, RowsConfig, Iterable[Row]]],
    kind: Kind,
    *,
    quarantine: Path,
    rewrite: Callable[[Draft], Draft] | None = None,
) -> list[Parsed[Any]]:
    """Read the records of a kind from all sources of it: what one has already, later ones repeat.

    Args:
        sources: For each its key in the configuration, how its rows are read, and its rows.
        kind: Which records.
        quarantine: Where to leave the rows if all rows of a source are skipped.
        rewrite: Changes what a row says before it is judged.

    Returns:
        For each source, its records.

    Raises:
        DataError: As `parse_demonstrations`.
    """
    finish = _finisher(kind)
    read = [
        _outcomes(rows, kind, finish, name, source.format, source.columns, rewrite) for name, source, rows in sources
    ]
    parsed = distinct_records(read)
    some = any(each.records for each in parsed)
    for (name, _, _), each in zip(sources, parsed, strict=True):
        if some and each.num_repeats:  # all that it has, an earlier source has too
            continue
        try:
            _whole(each, kind, name)
        except NothingLeft as error:
            if not error.quarantine:
                raise
            where = leave_quarantine(quarantine, name, error.quarantine)
            raise NothingLeft(f"{error} ({where})", error.quarantine) from None
    return parsed


def chosen_demonstrations(pairs: Iterable[PreferencePair]) -> list[Demonstration]:
    """Derive demonstrations from preference pairs: the chosen responses."""
    return [Demonstration(prompt=pair.prompt, response=pair.chosen) for pair in pairs]


def prompts_of(records: Iterable[Demonstration | PreferencePair]) -> list[PromptRecord]:
    """Derive prompts from other records, without the empty ones: plain text to imitate has none."""
    return [PromptRecord(prompt=record.prompt) for record in records if not is_empty_prompt(record.prompt)]


def _finisher(kind: Kind) -> Callable[[Draft], tuple[Any, ...]]:
    match kind:
        case "demonstrations":
            return demonstrations_of
        case "preferences":
            return preferences_of
        case "prompts":
            return prompts_in


def _outcomes(
    rows: Iterable[Row],
    kind: Kind,
    finish: Callable[[Draft], tuple[R, ...]],
    name: str,
    record_format: RecordFormat,
    columns: Mapping[str, str],
    rewrite: Callable[[Draft], Draft] | None = None,
) -> Sequence[Read[R] | Skipped]:
    """What each row says, in order."""
    if record_format != "auto" and record_format not in FORMATS_BY_KIND[kind]:
        raise DataError(wrong_format(name, record_format, kind))
    outcomes: list[Read[R] | Skipped] = []
    labeled: list[tuple[Row, Draft] | Skipped] = []
    for row in rows:
        renamed = _rename(row, columns, name)
        if record_format == "auto":
            record_format = recognise_format(renamed, kind, name=name)
        _require_columns(renamed, row, record_format, kind, name)
        try:
            draft = read_draft(renamed, record_format, kind, name)
            if kind == "prompts":
                draft = replace(draft, reference=reference_in(renamed, name))
            require_length(draft)
            if rewrite is not None:
                draft = rewrite(draft)
            if record_format == "labeled" and kind == "preferences":
                require_usable_response(draft)
                labeled.append((row, draft))
            else:
                outcomes.append(Read(row, finish(draft), record_format not in _OWN_FORMATS[kind]))
        except SkippedRow as reason:
            (labeled if record_format == "labeled" and kind == "preferences" else outcomes).append(
                Skipped(row, str(reason))
            )
    return pair_labeled(labeled) if labeled else outcomes  # type: ignore[return-value]


def _whole(parsed: Parsed[R], kind: Kind, name: str) -> Parsed[R]:
    """Refuse a source of which nothing is left."""
    if parsed.records:
        return parsed
    last_row = f" of the rows up to {parsed.quarantine[-1].row.origin}" if parsed.quarantine else ""
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(parsed.skipped.items())) or "no rows"
    main = parsed.skipped.most_common(1)
    remedy = f": {REASONS[main[0][0]][0]}; {REASONS[main[0][0]][1]}" if main else ""
    raise NothingLeft(
        f"{name}: no {kind} are left{last_row} ({reasons}); at least one usable row is needed; check the "
        f"file, `{name}.format` and `{name}.columns`{remedy}",
        parsed.quarantine,
    )


def _require_columns(renamed: Row, row: Row, record_format: RecordFormat, kind: Kind, name: str) -> None:
    for column in needed_columns(record_format, kind):
        if column not in renamed.values:
            near = nearest(column, renamed.values)
            raise DataError(
                f"{row.origin}: {name}: column `{column}` is missing, the row has "
                f"{shown_list(renamed.values)}; format `{record_format}` needs it; repair the row, or name "
                f"the column that holds it: `{name}.columns: {{{column}: {near or 'present'}}}`"
            )


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
