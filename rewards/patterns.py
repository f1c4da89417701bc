"""Regular expressions with a time limit: a careless one takes longer than the universe has for some texts."""

from typing import Any, NoReturn

import regex

from data.errors import ConfigError, StageError

_SHOWN_CHARACTERS = 80


def compiled(pattern: str, setting: str, *, groups: int | None = None) -> Any:
    """Compile a pattern of the configuration.

    Args:
        pattern: In the syntax of the package `regex`.
        setting: Its key, for messages.
        groups: How many groups it needs; None takes any number.

    Raises:
        ConfigError: It is no pattern, or has another number of groups.
    """
    try:
        found = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ConfigError(
            f"{setting}={_shown(pattern)}: no regular expression ({error}); one in the syntax of the package `regex` "
            f"is needed; correct it (in YAML, single quotes leave backslashes alone)"
        ) from error
    if groups is not None and found.groups != groups:
        raise ConfigError(
            f"{setting}={_shown(pattern)}: it has {found.groups} groups, but {groups} is needed: what is in it is the "
            f"answer; put it into brackets, and write `(?:...)` for others"
        )
    return found


def too_slow(pattern: str, setting: str, timeout_seconds: float, text: str) -> NoReturn:
    """End the stage: a pattern that scored 0 by the clock would score otherwise on another day.

    Raises:
        StageError: Always.
    """
    raise StageError(
        f"{setting}: the pattern {_shown(pattern)} took longer than {timeout_seconds:g} s on the response "
        f"{_shown(text)}; one that ends is needed: avoid repetitions within repetitions, as in `(a+)+`, or raise "
        f"`timeout_seconds`"
    )


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
