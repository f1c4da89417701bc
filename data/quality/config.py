"""Which findings in the data stop a run, and where they begin. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from data.strict import StrictModel

Check = Literal[
    "duplicates",
    "near_duplicates",
    "contradictions",
    "equal_responses",
    "length_bias",
    "leakage",
    "near_leakage",
    "personal_data",
    "truncation",
]
Level = Literal["off", "info", "warning", "error"]


class ChecksConfig(StrictModel):
    """Checks of the records. A finding of level `error` stops the run before anything is trained."""

    levels: dict[Check, Level] = Field(default_factory=dict)
    """Level of a check wherever it finds something, in place of its own: `{length_bias: error, near_leakage: off}`."""

    near_duplicate_similarity: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Estimated Jaccard similarity of the sets of word 5-grams from which on two records are near duplicates (Lee et
    al. 2022, section 4.2)."""

    leakage_words: int = Field(default=13, ge=3)
    """Words in a row that a held-out prompt shares with training text by copying, not by chance (Brown et al. 2020,
    appendix C)."""

    language_sample: int = Field(default=500, ge=1)
    """Records of each kind whose language is determined, chosen by a hash of the prompt."""
