"""Train and held-out sides of all sources at once: what one holds out, none trains on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data.schema import PreferencePair, Record, key_is_held_out, split_key

Name = TypeVar("Name")


@dataclass(frozen=True)
class SplitRecords:
    """The two sides of one source.

    Attributes:
        train: Records to train on.
        held_out: Records for validation and evaluation.
        num_leaks: Records left out of `train` because their prompt is held out in another source.
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


def split_records(records: Mapping[Name, Sequence[Record]], shares: Mapping[Name, float]) -> dict[Name, SplitRecords]:
    """Split every source by the hash of the prompt, and keep what any of them holds out away from all training.

    Args:
        records: Records of each source, in order.
        shares: Share to hold out of each source, in [0, 1).

    Returns:
        Both sides of each source, in the records' order.
    """
    keys = {name: [split_key(record) for record in rows] for name, rows in records.items()}
    held_out = {name: held_out_keys(keys[name], shares[name]) for name in records}
    anywhere = set().union(*held_out.values())
    result: dict[Name, SplitRecords] = {}
    for name, rows in records.items():
        keyed = list(zip(keys[name], rows, strict=True))
        train = [record for key, record in keyed if key not in anywhere]
        held = [record for key, record in keyed if key in held_out[name]]
        result[name] = SplitRecords(train, held, num_leaks=len(rows) - len(train) - len(held))
    return result


def thin_out(records: Mapping[Name, Sequence[Record]], weights: Mapping[Name, float]) -> dict[Name, list[Record]]:
    """Leave as many training records as weights allow without repeating any.

    Source i keeps N w_i / sum(w) of its n_i records, rounded down, for the largest N that asks no source for more than
    it has. The pairs of one ranking count as one record together, as in the loss. A hash of the prompt chooses, another
    one than that which holds out, so that a source keeps the same records whatever stands beside them in its file, and
    a smaller weight keeps a part of what a larger one does.

    Args:
        records: Records of each source, in order.
        weights: A positive weight for each source.

    Returns:
        What is left of each, in the records' order.
    """
    total = sum(weights[name] for name in records)
    sizes = {name: [_size(record) for record in rows] for name, rows in records.items()}
    whole = min(sum(sizes[name]) * total / weights[name] for name in records)
    kept: dict[Name, list[Record]] = {}
    for name, rows in records.items():
        room = whole * weights[name] / total + 1e-6  # undoes rounding: a source that just suffices keeps all it has
        chosen = set()
        for index in sorted(range(len(rows)), key=lambda index: (_mixing_hash(rows[index]), index)):
            room -= sizes[name][index]
            if room < 0:
                break
            chosen.add(index)
        kept[name] = [record for index, record in enumerate(rows) if index in chosen]
    return kept


def _size(record: Record) -> float:
    return (record.weight or 1.0) if isinstance(record, PreferencePair) else 1.0


def _mixing_hash(record: Record) -> str:
    return hashlib.sha256(f"mix {split_key(record)}".encode()).hexdigest()
