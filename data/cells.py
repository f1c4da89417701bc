"""Single cells of a row: text, messages, a number. What is of another type is an error that names the column."""

from data.conversations import parse_messages
from data.errors import DataError
from data.readers import Row
from data.schema import Prompt
from data.shown import described


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
    try:
        margin = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        margin = float("nan")
    if margin - margin != 0.0:  # NaN or infinite
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
