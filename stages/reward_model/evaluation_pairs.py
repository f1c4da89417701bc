"""A preference pair as the reward model reads it."""

from dataclasses import dataclass

from data.batch_encoding import Ids


@dataclass(frozen=True)
class TokenizedPair:
    """A preference pair as token ids; both responses end with EOS."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    margin: float | None
    weight: float | None = None
    source: str | None = None
    ranking: str | None = None
