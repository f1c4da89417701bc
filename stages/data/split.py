"""Train and held-out sides of all kinds at once: what one kind holds out, no kind trains on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data.schema import Kind, Record, key_is_held_out, split_key


@dataclass(frozen=True)
class SplitRecords:
    """The two sides of one kind.

    Attributes:
        train: Records to train on.
        held_out: Records for validation and evaluation.
        num_leaks: Records left out of `train` because their prompt is held out in another kind.
    """

    train: list[Record]
    held_out: list[Record]
    num_leaks: int


def held_out_keys(keys: Iterable[str], share: float) -> set[str]:
    """Choose the hashes that are held out.

    The share decides by the hash alone. Small sources are evened out: with a share above 0 and two prompts or
    more, the least hash is held out where none fell into the share, and the greatest is trained on where all
    did. A single prompt is trained on.

    Args:
        keys: Hash of each record's prompt, from `data.schema.split_key`.
        share: Share to hold out, in [0, 1).
    """
    distinct = sorted(set(keys))
    if share == 0.0 or len(distinct) < 2:
        return set()
    held_out = {key for key in distinct if key_is_held_out(key, share)} or {distinct[0]}
    return held_out - {distinct[-1]} if len(held_out) == len(distinct) else held_out


def split_records(records: Mapping[Kind, Sequence[Record]], shares: Mapping[Kind, float]) -> dict[Kind, SplitRecords]:
    """Split every kind by the hash of the prompt, and keep what any kind holds out away from all training.

    Args:
        records: Records of each kind, in order.
        shares: Share to hold out of each kind, in [0, 1).

    Returns:
        Both sides of each kind, in the records' order.
    """
    keys = {kind: [split_key(record) for record in rows] for kind, rows in records.items()}
    held_out = {kind: held_out_keys(keys[kind], shares[kind]) for kind in records}
    anywhere = set().union(*held_out.values())
    result: dict[Kind, SplitRecords] = {}
    for kind, rows in records.items():
        keyed = list(zip(keys[kind], rows, strict=True))
        train = [record for key, record in keyed if key not in anywhere]
        held = [record for key, record in keyed if key in held_out[kind]]
        result[kind] = SplitRecords(train, held, num_leaks=len(rows) - len(train) - len(held))
    return result
