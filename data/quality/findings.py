"""What a check found: how many, how bad, what to do."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from data.quality.config import Check, ChecksConfig, Level
from data.schema import Kind


class Limits(NamedTuple):
    """Shares above which a finding is worth a level; None: never."""

    warning: float | None
    error: float | None


LIMITS: dict[Check, Limits] = {
    "duplicates": Limits(0.01, None),
    "near_duplicates": Limits(0.01, None),
    "contradictions": Limits(0.0, 0.1),
    "equal_responses": Limits(0.01, None),
    "length_bias": Limits(0.1, None),
    "leakage": Limits(None, 0.0),
    "near_leakage": Limits(0.0, None),
    "personal_data": Limits(0.0, None),
    "truncation": Limits(0.05, 0.5),
}
"""Of the rows, pairs or held-out prompts that each check looks at; for length bias the distance from one half."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found in the records of one kind.

    Attributes:
        check: Which check.
        kind: Of which records.
        level: How bad it is.
        count: How many records it concerns.
        share: Their share of those that were looked at, or what the check measures, see `LIMITS`.
        text: What was found, what is needed, what to do.
        examples: A few places or texts, for a reader.
    """

    check: Check
    kind: Kind
    level: Literal["info", "warning", "error"]
    count: int
    share: float
    text: str
    examples: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"examples": list(self.examples)}


def level_of(check: Check, share: float, config: ChecksConfig) -> Level:
    """How bad a share is: as the configuration says wherever there is anything, else by the limits.

    Args:
        check: Which check.
        share: What it measured.
        config: May name a level.

    Returns:
        `off` where there is nothing to tell.
    """
    limits = LIMITS[check]
    if share <= 0.0 or (check == "length_bias" and share <= (limits.warning or 0.0)):
        return "off"
    if check in config.levels:
        return config.levels[check]
    if limits.error is not None and share > limits.error:
        return "error"
    if limits.warning is not None and share > limits.warning:
        return "warning"
    return "info"


def make_finding(
    check: Check,
    kind: Kind,
    config: ChecksConfig,
    *,
    count: int,
    share: float,
    text: str,
    examples: tuple[str, ...] = (),
) -> list[Finding]:
    """The finding, or none where it is switched off or nothing."""
    level = level_of(check, share, config)
    return [] if level == "off" else [Finding(check, kind, level, count, share, text, examples)]


def counts_by_level(findings: list[Finding]) -> Mapping[str, int]:
    """Number of findings of each level, the worst first."""
    return {level: sum(found.level == level for found in findings) for level in ("error", "warning", "info")}
