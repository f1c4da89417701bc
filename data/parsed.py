"""What is left of the rows of sources: distinct records that do not contradict each other, and the rows left out."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from data.errors import DataError
from data.quarantine import Skipped, count_reasons
from data.rows import Row
from data.schema import Demonstration, PreferencePair, PromptRecord, prompt_key

R = TypeVar("R", Demonstration, PreferencePair, PromptRecord)


@dataclass(frozen=True, slots=True)
class Read(Generic[R]):
    """A row that was read.

    Attributes:
        row: The row.
        records: What it says. A ranking makes several pairs; a row may also have none of its own without being
            defective, say a response labelled bad where demonstrations are wanted.
        is_richer: The row is of a richer format than its records, which then repeat each other by nature.
    """

    row: Row
    records: tuple[R, ...]
    is_richer: bool


class Parsed(NamedTuple, Generic[R]):
    """Records of one source and what was left out.

    Attributes:
        records: In the order of the rows, each once.
        quarantine: Rows that were skipped, in the order of the rows.
        num_rows: Rows of the source, skipped ones included.
        num_repeats: Rows without a record of their own that are no defect: several pairs share a prompt.
    """

    records: list[R]
    quarantine: list[Skipped]
    num_rows: int
    num_repeats: int

    @property
    def skipped(self) -> Counter[str]:
        """Number of skipped rows by reason."""
        return count_reasons(self.quarantine)


class NothingLeft(DataError):
    """Every row of a source was skipped.

    Attributes:
        quarantine: The rows.
    """

    def __init__(self, message: str, quarantine: list[Skipped]) -> None:
        """Keep the rows beside the message."""
        super().__init__(message)
        self.quarantine = quarantine


_Place = tuple[int, int]
"""Number of the source, number of the row in it."""


def distinct_records(sources: Sequence[Sequence[Read[R] | Skipped]]) -> list[Parsed[R]]:
    """Leave out repeated records, all but the first, and pairs that another pair states the other way round.

    A row whose records all stood in earlier rows is left out, and so is a row one of whose pairs is contradicted.

    Args:
        sources: For each source, and each row of it in order, its records, or that it was skipped.

    Returns:
        For each source, what is left of it. A record that several have is left to the first.
    """
    rows = {
        (number, index): each
        for number, outcomes in enumerate(sources)
        for index, each in enumerate(outcomes)
        if isinstance(each, Read)
    }
    repeated, kept = _repeats(rows)
    against = _contradictions(rows, kept)
    return [_parsed(number, outcomes, repeated, kept, against) for number, outcomes in enumerate(sources)]


def _parsed(
    number: int,
    outcomes: Sequence[Read[R] | Skipped],
    repeated: Mapping[_Place, Skipped],
    kept: Mapping[_Place, tuple[R, ...]],
    against: Mapping[_Place, Skipped],
) -> Parsed[R]:
    records: list[R] = []
    quarantine: list[Skipped] = []
    num_repeats = 0
    for index, each in enumerate(outcomes):
        place = number, index
        if isinstance(each, Skipped):
            quarantine.append(each)
        elif place in against:
            quarantine.append(against[place])
        elif place in repeated and not each.is_richer:
            quarantine.append(repeated[place])
        elif not kept[place]:
            num_repeats += 1
        else:
            records += kept[place]
    return Parsed(records, quarantine, num_rows=len(outcomes), num_repeats=num_repeats)


def _repeats(rows: Mapping[_Place, Read[R]]) -> tuple[dict[_Place, Skipped], dict[_Place, tuple[R, ...]]]:
    """The rows that say nothing new, and what is new in each row."""
    first: dict[R, Row] = {}
    skipped: dict[_Place, Skipped] = {}
    kept: dict[_Place, tuple[R, ...]] = {}
    for place, each in rows.items():
        kept[place] = tuple(record for record in each.records if first.setdefault(record, each.row) is each.row)
        if each.records and not kept[place]:
            earlier = first[each.records[0]]
            skipped[place] = Skipped(each.row, "duplicate", f"of {earlier.place or earlier.origin}")
    return skipped, kept


def _contradictions(rows: Mapping[_Place, Read[R]], kept: Mapping[_Place, tuple[R, ...]]) -> dict[_Place, Skipped]:
    """All sides are left out: nothing says which one is right, and together they teach nothing but noise."""
    said: defaultdict[tuple[str, str, str], list[_Place]] = defaultdict(list)
    for place, verdict in _verdicts(kept):
        said[verdict].append(place)
    skipped: dict[_Place, Skipped] = {}
    for (prompt, better, worse), places in said.items():
        opposite = said.get((prompt, worse, better))
        if opposite:
            other = rows[opposite[0]].row
            skipped |= {
                place: Skipped(rows[place].row, "contradicting_pair", f"by {other.place or other.origin}")
                for place in places
            }
    return skipped


def _verdicts(kept: Mapping[_Place, tuple[R, ...]]) -> Iterator[tuple[_Place, tuple[str, str, str]]]:
    for place, records in kept.items():
        for record in records:
            if isinstance(record, PreferencePair):
                yield place, (prompt_key(record.prompt), record.chosen.strip(), record.rejected.strip())
