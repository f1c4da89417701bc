"""Records that are nearly the same text: MinHash (Broder 1997) by `datasketch`, and locality-sensitive hashing.

Thresholds and 5-grams as Lee et al. 2022, section 4.2, https://arxiv.org/abs/2107.06499.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.parallel import map_chunks
from data.quality.words import ngram_hashes, words_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Signatures = npt.NDArray[np.uint32]

_PERMUTATIONS = 128
_NGRAM = 5
_SEED = 1
_FOUND = 0.99
_MOST_COMPARED = 32


@dataclass(frozen=True)
class Cluster:
    """Texts that are near duplicates of each other, directly or through others; numbers ascending."""

    members: tuple[int, ...]


def near_duplicates(texts: Sequence[str], similarity: float) -> list[Cluster]:
    """Find clusters of near duplicates.

    Texts with the same words (case and punctuation aside) count as near duplicates whatever their length; of texts
    shorter than five words only those.

    Args:
        texts: One a record.
        similarity: Estimated Jaccard similarity of the sets of word 5-grams, in (0, 1).

    Returns:
        Clusters of two or more, by their first member. The estimate has a standard error of 0.035 at 0.8.
    """
    import numpy as np  # late: `rlhf --help` does without

    parents = list(range(len(texts)))
    first_with: dict[bytes, int] = {}
    numbers: list[int] = []
    found: list[Signatures] = []
    start = 0
    for digests, lengths, signatures in map_chunks(_signatures, texts):
        chosen = []
        for row, (digest, length) in enumerate(zip(digests, lengths, strict=True)):
            first = first_with.setdefault(digest, start + row) if length else start + row
            if first != start + row:
                _join(parents, first, start + row)
            elif length >= _NGRAM:
                chosen.append(row)
        numbers += [start + row for row in chosen]
        found.append(signatures[chosen])
        start += len(digests)
    matrix = np.concatenate(found) if found else np.empty((0, _PERMUTATIONS), dtype=np.uint32)
    for a, b in _candidates(matrix, similarity):
        first, second = numbers[a], numbers[b]
        if _root(parents, first) != _root(parents, second) and (
            np.count_nonzero(matrix[a] == matrix[b]) >= similarity * _PERMUTATIONS
        ):
            _join(parents, first, second)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for number in range(len(texts)):
        members[_root(parents, number)].append(number)
    return [Cluster(tuple(group)) for _, group in sorted(members.items()) if len(group) > 1]


def _signatures(texts: Sequence[str]) -> "tuple[list[bytes], list[int], Signatures]":
    """For each text a digest of its words, their number, and its MinHash [texts, permutations]; zeros where short."""
    import numpy as np
    from datasketch import MinHash  # late: it brings scipy

    words = [words_of(text) for text in texts]
    digests = [hashlib.blake2b(" ".join(each).encode(), digest_size=16).digest() for each in words]
    lengths = [len(each) for each in words]
    rows = [row for row, length in enumerate(lengths) if length >= _NGRAM]
    # Hashed already: datasketch takes 32 bits of each shingle.
    hashes, ends = ngram_hashes(words, _NGRAM)
    starts = np.concatenate([[0], ends[:-1]])
    shingles = (np.unique(hashes[starts[row] : ends[row]] >> np.uint64(32)) for row in rows)
    signatures = np.zeros((len(texts), _PERMUTATIONS), dtype=np.uint32)
    found = MinHash.generator(shingles, num_perm=_PERMUTATIONS, seed=_SEED, hashfunc=_as_it_is)
    for row, signature in zip(rows, found, strict=True):
        signatures[row] = signature.hashvalues
    return digests, lengths, signatures


def _as_it_is(hashed: int) -> int:
    return hashed


def _candidates(signatures: "Signatures", similarity: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows that agree on a whole band.

    Bands have as many rows as still let 99 % of the pairs at the threshold agree on one of them. In a large bucket,
    say of texts that share a long template, a row is compared with the next ones only.
    """
    import numpy as np

    rows = max(
        (rows for rows in range(1, 33) if 1 - (1 - similarity**rows) ** (_PERMUTATIONS // rows) >= _FOUND), default=1
    )
    for start in range(0, _PERMUTATIONS - rows + 1, rows):
        band = np.ascontiguousarray(signatures[:, start : start + rows])
        keys = band.view(np.dtype((np.void, band.dtype.itemsize * rows))).ravel()
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.concatenate([[True], keys[order[1:]] != keys[order[:-1]], [True]]))
        for first in np.flatnonzero(np.diff(starts) > 1):
            bucket = order[starts[first] : starts[first + 1]].tolist()
            for place, row in enumerate(bucket):
                for other in bucket[place + 1 : place + 1 + _MOST_COMPARED]:
                    yield row, other


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def _join(parents: list[int], first: int, second: int) -> None:
    low, high = sorted((_root(parents, first), _root(parents, second)))
    parents[high] = low
