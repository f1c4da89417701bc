"""Records that are nearly the same text: MinHash with locality-sensitive hashing, by `datasketch`.

Broder 1997; thresholds and 5-grams as Lee et al. 2022, section 4.2, https://arxiv.org/abs/2107.06499.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from data.quality.words import ngrams, words_of

_PERMUTATIONS = 128
_NGRAM = 5
_SEED = 1


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
    from datasketch import MinHash, MinHashLSH  # late: it brings scipy

    index = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS)
    same: dict[frozenset[str], int] = {}
    signatures: dict[int, MinHash] = {}
    parents = list(range(len(texts)))
    for number, text in enumerate(texts):
        shingles = frozenset(ngrams(words_of(text), _NGRAM))
        if not shingles:
            continue
        first = same.setdefault(shingles, number)
        if first != number:
            _join(parents, first, number)
            continue
        signature = MinHash(_PERMUTATIONS, seed=_SEED)
        signature.update_batch([shingle.encode() for shingle in shingles])
        for other in index.query(signature):
            if signatures[other].jaccard(signature) >= similarity:
                _join(parents, other, number)
        index.insert(number, signature, check_duplication=False)
        signatures[number] = signature
    members: defaultdict[int, list[int]] = defaultdict(list)
    for number in range(len(texts)):
        members[_root(parents, number)].append(number)
    return [Cluster(tuple(group)) for _, group in sorted(members.items()) if len(group) > 1]


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def _join(parents: list[int], first: int, second: int) -> None:
    low, high = sorted((_root(parents, first), _root(parents, second)))
    parents[high] = low
