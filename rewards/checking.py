"""What a reward function that is not ours gave back: one finite number an episode, or a clear error."""

import math
from collections.abc import Sequence
from typing import Any

from data.errors import StageError
from rewards.contract import Episode

_SHOWN_CHARACTERS = 80


def checked_scores(found: Any, episodes: Sequence[Episode], *, source: str, remedy: str) -> list[float]:
    """Check that there is one finite number an episode.

    Args:
        found: What was given back: a list or tuple, or a one-dimensional array or tensor.
        episodes: What was judged.
        source: Who gave it, for messages.
        remedy: What to do, for messages.

    Returns:
        The scores as floats.

    Raises:
        StageError: It is something else.
    """
    needed = f"one finite number for each of {len(episodes)} responses is needed: {remedy}"
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, list | tuple):
        raise StageError(f"{source} gave {_shown(found)} ({type(found).__name__}); {needed}")
    if len(values) != len(episodes):
        raise StageError(f"{source} gave {len(values)} scores; {needed}")
    for value, episode in zip(values, episodes, strict=True):
        if not _is_finite_number(value):
            what = f"{_shown(value)} ({type(value).__name__})"
            raise StageError(
                f"{source} gave {what} for the response {_shown(episode.response_text)} to the prompt "
                f"{_shown(episode.prompt_text)}; {needed}"
            )
    return [float(value.item() if hasattr(value, "item") else value) for value in values]


def shown_prompt(episode: Episode) -> str:
    """The beginning of an episode's prompt, for messages."""
    return _shown(episode.prompt_text)


def _is_finite_number(value: Any) -> bool:
    number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond what a float can say
        return False


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
