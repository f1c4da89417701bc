"""Held-out prompts that training text gives away: the same prompt, or long runs of its words."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.parallel import map_chunks
from data.quality.words import ngram_hashes, prompt_text, record_texts, words_of
from data.schema import Record, split_key

_FIRST_BITS = 22
_COPIED_SHARE = 0.5
_BOILERPLATE_PROMPTS = 10


@dataclass(frozen=True)
class Leak:
    """A held-out record whose prompt stands in training text.

    Attributes:
        index: Its number among the held-out records.
        is_exact: The same prompt is trained on; otherwise half of its word sequences or more are.
        share: Share of its word sequences that stand in training text; 1 where it is exact.
    """

    index: int
    is_exact: bool
    share: float


def find_leaks(held_out: Sequence[Record], train: Iterable[Record], *, num_words: int) -> list[Leak]:
    """Find held-out prompts in training records, prompts and responses alike.

    Sequences that ten held-out prompts or more share are boilerplate, say of a template, and count for nothing. Prompts
    of fewer words than a sequence has can only leak exactly.

    Args:
        held_out: Records whose prompts have to be new to the model.
        train: Records that any stage trains on.
        num_words: Words in a sequence (13 in Brown et al. 2020, appendix C, https://arxiv.org/abs/2005.14165).

    Returns:
        Leaks in the order of the held-out records, each prompt once.
    """
    sequences: dict[int, set[int]] = {}
    keys: dict[str, int] = {}
    for index, record in enumerate(held_out):
        keys.setdefault(split_key(record), index)
    first = list(keys.values())
    hashes, ends = ngram_hashes([words_of(prompt_text(held_out[index].prompt)) for index in first], num_words)
    for index, start, end in zip(first, [0, *ends.tolist()], ends.tolist(), strict=False):
        if start < end:
            sequences[index] = set(hashes[start:end].tolist())
    common = Counter(sequence for found in sequences.values() for sequence in found)
    sequences = {
        index: own
        for index, found in sequences.items()
        if (own := {sequence for sequence in found if common[sequence] < _BOILERPLATE_PROMPTS})
    }
    exact: set[int] = set()
    texts: list[str] = []
    for record in train:
        if (index_of := keys.get(split_key(record))) is not None:
            exact.add(index_of)
        texts += record_texts(record)
    seen: set[int] = set()
    if wanted := set().union(*sequences.values()):
        seen.update(*map_chunks(_SequencesIn(wanted, num_words), texts))
    leaks = {index: Leak(index, True, 1.0) for index in exact}
    for index, own in sequences.items():
        share = len(own & seen) / len(own)
        if share >= _COPIED_SHARE and index not in leaks:
            leaks[index] = Leak(index, False, share)
    return [leaks[index] for index in sorted(leaks)]


class _SequencesIn:
    """The wanted sequences that stand in texts, as hashes."""

    def __init__(self, wanted: set[int], num_words: int) -> None:
        import numpy as np

        self._wanted, self._num_words = np.sort(np.fromiter(wanted, dtype=np.uint64, count=len(wanted))), num_words
        # Most sequences of a text are ruled out by their first bits, without a search.
        self._may_be_wanted = np.zeros(1 << _FIRST_BITS, dtype=bool)
        self._may_be_wanted[self._wanted >> np.uint64(64 - _FIRST_BITS)] = True

    def __call__(self, texts: Sequence[str]) -> set[int]:
        import numpy as np

        hashes, _ = ngram_hashes([words_of(text) for text in texts], self._num_words)
        hashes = hashes[self._may_be_wanted[hashes >> np.uint64(64 - _FIRST_BITS)]]
        places = np.searchsorted(self._wanted, hashes)
        places[places == len(self._wanted)] = 0
        return set(hashes[self._wanted[places] == hashes].tolist())
