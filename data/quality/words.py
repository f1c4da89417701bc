"""Words and their sequences, in any script."""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from data.schema import Demonstration, PreferencePair, Prompt, Record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15
# Chinese, Japanese and Korean are written without spaces: there a character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|\w+")


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def ngram_hashes(texts: Sequence[Sequence[str]], size: int) -> "tuple[Hashes, npt.NDArray[np.int64]]":
    """A 64-bit hash of each run of so many words: those of all texts in order, and where each text's end.

    Equal runs have equal hashes in every process. Among n runs, two different ones share a hash with a probability of
    n^2 / 2^65.

    Args:
        texts: The words of each.
        size: Words in a run; none goes over the end of a text, and a text of fewer words has none.
    """
    import numpy as np  # late: `rlhf --help` does without

    lengths = np.array([len(words) for words in texts], dtype=np.int64)
    each = np.fromiter(map(_word_hash, chain.from_iterable(texts)), dtype=np.uint64, count=int(lengths.sum()))
    counts = np.maximum(lengths - size + 1, 0)
    ends = np.cumsum(counts)
    if not len(ends) or not ends[-1]:
        return np.empty(0, dtype=np.uint64), ends
    hashes = np.zeros(len(each) - size + 1, dtype=np.uint64)
    for place in range(size):  # a polynomial in an odd number, modulo 2^64
        hashes = hashes * np.uint64(_BASE) + each[place : place + len(hashes)]
    # The first runs of the texts, and from there the others.
    first_words, first_runs = np.cumsum(lengths) - lengths, ends - counts
    hashes = hashes[np.arange(ends[-1]) + np.repeat(first_words - first_runs, counts)]
    # The last step of splitmix64 (Steele et al. 2014) spreads what differs over all bits.
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31)), ends


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest())


def prompt_text(prompt: Prompt) -> str:
    """What a prompt says, system text left out: many prompts share it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn.content for turn in prompt if turn.role != "system")


def record_texts(record: Record) -> tuple[str, ...]:
    """All texts of a record: the prompt, then its responses."""
    prompt = prompt_text(record.prompt)
    match record:
        case Demonstration():
            return prompt, record.response
        case PreferencePair():
            return prompt, record.chosen, record.rejected
        case _:
            return (prompt,)
