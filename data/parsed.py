"""What is left of the rows of a source: distinct records that do not contradict each other, and the rows left out."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from data.errors import DataError
from data.quarantine import Skipped, count_reasons
from data.readers import Row
from data.schema import Demonstration, PreferencePair, PromptRecord, prompt_key

R = TypeVar("R", Demonstration, PreferencePair, PromptRecord)


class Parsed(NamedTuple, Generic[R]):
    """Records and what was left out.

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


def distinct_records(results: Sequence[tuple[Row, R] | Skipped], *, repeats_are_natural: bool) -> Parsed[R]:
    """Leave out repeated records, all but the first, and pairs that another pair states the other way round.

    Args:
        results: For each row, in order, its record, or that it was skipped.
        repeats_are_natural: Repeated records are merged without being counted as skipped rows: the rows are of a
            richer format than the records.
    """
    skipped = {number: each for number, each in enumerate(results) if isinstance(each, Skipped)}
    found = {number: each for number, each in enumerate(results) if not isinstance(each, Skipped)}
    repeated = _repeats(found)
    kept = {number: each for number, each in found.items() if number not in repeated}
    against = _contradictions(kept)
    skipped |= against if repeats_are_natural else {**repeated, **against}
    return Parsed(
        records=[record for number, (_, record) in kept.items() if number not in against],
        quarantine=[skipped[number] for number in sorted(skipped)],
        num_rows=len(results),
        num_repeats=len(repeated) if repeats_are_natural else 0,
    )


def _repeats(found: Mapping[int, tuple[Row, R]]) -> dict[int, Skipped]:
    first: dict[R, Row] = {}
    skipped: dict[int, Skipped] = {}
    for number, (row, record) in found.items():
        earlier = first.setdefault(record, row)
        if earlier is not row:
            skipped[number] = Skipped(row, "duplicate", f"of {earlier.place or earlier.origin}")
    return skipped


def _contradictions(found: Mapping[int, tuple[Row, R]]) -> dict[int, Skipped]:
    """All sides are left out: nothing says which one is right, and together they teach nothing but noise."""
    said: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number, (_, record) in found.items():
        if isinstance(record, PreferencePair):
            said[prompt_key(record.prompt), record.chosen.strip(), record.rejected.strip()].append(number)
    skipped: dict[int, Skipped] = {}
    for (prompt, better, worse), numbers in said.items():
        opposite = said.get((prompt, worse, better))
        if opposite:
            other = found[opposite[0]][0]
            skipped |= {
                n: Skipped(found[n][0], "contradicting_pair", f"by {other.place or other.origin}") for n in numbers
            }
    return skipped
