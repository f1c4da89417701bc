"""Values of data files as messages show them: on one line, printable, short."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

_MAX_VALUE_CHARS = 40
_MAX_NAMES = 12


def shown(text: str, limit: int = _MAX_VALUE_CHARS) -> str:
    """Text without its line ends, escape sequences and halves of characters, cut to `limit`."""
    printable = repr(text[: 2 * limit])[1:-1]
    return printable if len(printable) <= limit else printable[: limit - 3] + "..."


def shown_list(names: Iterable[str]) -> str:
    """Names in backticks, at most a dozen."""
    listed = [f"`{shown(name)}`" for name in names]
    more = f" and {len(listed) - _MAX_NAMES} more" if len(listed) > _MAX_NAMES else ""
    return (", ".join(listed[:_MAX_NAMES]) + more) or "none"


def described(value: Any) -> str:
    """A value with its type."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str):
        return f"a str ('{shown(value)}')"
    return f"a {type(value).__name__} ({shown(repr(value))})"


def nearest(needed: str, present: Mapping[str, Any]) -> str:
    """The present name that looks like the needed one; empty where none does."""
    close = get_close_matches(needed.lower(), [name.lower() for name in present], n=1, cutoff=0.7)
    return next((name for name in present if close and name.lower() == close[0]), "")
