"""Single cells of a row: text, messages, numbers, a label. Of another type, they are an error that names the column."""

import json
import math
from contextlib import suppress
from typing import Any

from data.conversations import parse_messages
from data.errors import DataError
from data.rows import Row
from data.schema import Prompt
from data.shown import described

_GOOD = (True, 1, "true", "1", "yes")
_BAD = (False, 0, -1, "false", "0", "-1", "no")


def text_in(row: Row, column: str, name: str) -> str:
    """Text; empty where the cell is null or absent."""
    value = row.values.get(column)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise DataError(
        f"{row.origin}: {name}: column `{column}` holds {described(value)}; text is needed; "
        f"convert the column, or set `{name}.format`"
    )


def prompt_in(row: Row, column: str, name: str) -> Prompt:
    """Text or messages."""
    value = row.values.get(column)
    return text_in(row, column, name) if value is None or isinstance(value, str) else parse_messages(row, column, name)


def margin_in(row: Row, name: str) -> float | None:
    """A finite number, also written as text; None where the cell is empty."""
    value = row.values.get("margin")
    if value is None or value == "":
        return None
    margin = _number(value)
    if margin is None:
        raise DataError(
            f"{row.origin}: {name}: column `margin` holds {described(value)}; a finite number is needed; "
            f"correct it or leave it empty"
        )
    return margin


def reference_in(row: Row, name: str) -> str | None:
    """The right answer, as text or a whole number; None where the cell is null, blank or absent."""
    value = row.values.get("reference")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = text_in(row, "reference", name)
    return text if text.strip() else None


def texts_in(row: Row, column: str, name: str) -> tuple[str, ...]:
    """A list of texts; also of single messages, whose text it is."""
    items = _list_in(row, column, name, "texts")
    texts: list[str] = []
    for item in items:
        text = item.get("content", item.get("value")) if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise DataError(
                f"{row.origin}: {name}: column `{column}` holds {described(item)} at {len(texts)}; a list of texts is "
                f"needed; repair the row"
            )
        texts.append(text)
    return tuple(texts)


def numbers_in(row: Row, column: str, name: str) -> tuple[float, ...]:
    """A list of finite numbers, also written as text."""
    items = _list_in(row, column, name, "numbers")
    numbers = [_number(item) for item in items]
    for item, number in zip(items, numbers, strict=True):
        if number is None:
            raise DataError(
                f"{row.origin}: {name}: column `{column}` holds {described(item)}; finite numbers are needed; repair "
                f"the row"
            )
    return tuple(number for number in numbers if number is not None)


def flag_in(row: Row, column: str, name: str) -> bool:
    """A label: true or false, 1 or 0, 1 or -1, also written as text."""
    value = row.values.get(column)
    text = value.strip().lower() if isinstance(value, str) else value
    for meaning, spellings in ((True, _GOOD), (False, _BAD)):
        if any(text == spelling and isinstance(text, str) == isinstance(spelling, str) for spelling in spellings):
            return meaning
    raise DataError(
        f"{row.origin}: {name}: column `{column}` holds {described(value)}; true or false (also 1 or 0, 1 or -1) is "
        f"needed; convert the column, or set `{name}.format`"
    )


def _list_in(row: Row, column: str, name: str, of_what: str) -> list[Any]:
    """A list; tables without lists hold it as JSON text."""
    value = row.values.get(column)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list):
        raise DataError(
            f"{row.origin}: {name}: column `{column}` holds {described(row.values.get(column))}; a list of {of_what} "
            f"is needed; convert the column, or set `{name}.format`"
        )
    return value


def _number(value: Any) -> float | None:
    """A finite number; None where it is none."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
