"""A row of a source, before anything is known of it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        values: Value by column.
        origin: Where it stands, for messages: `path:line`, or `path: row N` where there are no lines.
        place: The same with the file's name below the source's folder, which may stand in an artifact; empty where
            it is the origin.
    """

    values: dict[str, Any]
    origin: str
    place: str = ""
