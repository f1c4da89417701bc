"""What a labeler is: it says, for the K responses to each prompt, how good each is beside the others."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from data.schema import Prompt, prompt_key
from rewards.contract import Episode

Opinion = tuple[float | None, ...]
"""One number a response, higher is better, equal numbers are a tie, None was not judged. Only the order counts, and
the gaps where not all pairs are kept."""


@dataclass(frozen=True)
class Candidates:
    """A prompt and the responses to it that are to be judged.

    Attributes:
        episodes: The responses.
    """

    episodes: tuple[Episode, ...]

    @property
    def prompt(self) -> Prompt:
        """The prompt as the data has it."""
        return self.episodes[0].prompt

    @cached_property
    def identity(self) -> str:
        """SHA-256 of prompt and responses, in hexadecimal: judgements are kept under it."""
        parts = [prompt_key(self.prompt), *(episode.response_text for episode in self.episodes)]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


class Labeler(Protocol):
    """Judges candidates."""

    def __call__(self, candidates: Sequence[Candidates]) -> list[Opinion]:
        """One opinion for each, in their order."""
        ...


@runtime_checkable
class RecordingLabeler(Labeler, Protocol):
    """A labeler whose opinions rest on something that belongs into the artifact: people's labels, a model's answers."""

    def record(self, folder: Path) -> dict[str, float]:
        """Write what the opinions of the last call rest on; the same opinions give the same bytes.

        Args:
            folder: The artifact's.

        Returns:
            Figures of the labeler for the stage's metrics.
        """
        ...
