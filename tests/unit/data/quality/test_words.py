"""Hashes of runs of words: those of many texts are those of each alone, and no run goes from one text to the next."""

import numpy as np
import pytest

from data.quality.words import ngram_hashes

A, B, C = "to be or not to be".split(), "be or".split(), "that is the question to be or not".split()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_many_texts_at_once_have_the_hashes_of_each(size: int) -> None:
    texts = [A, [], B, C, B]
    hashes, ends = ngram_hashes(texts, size)
    alone = [ngram_hashes([words], size)[0] for words in texts]
    assert [len(each) for each in alone] == [max(len(words) - size + 1, 0) for words in texts]
    assert np.array_equal(hashes, np.concatenate(alone))
    assert ends.tolist() == np.cumsum([len(each) for each in alone]).tolist()


def test_equal_runs_alone_have_equal_hashes() -> None:
    runs = [tuple(words[at : at + 2]) for words in (A, B, C) for at in range(len(words) - 1)]
    hashes = ngram_hashes([A, B, C], 2)[0].tolist()
    assert len(set(runs)) == len(set(hashes)) == len(set(zip(runs, hashes, strict=True))) < len(runs)


def test_no_texts_and_short_ones_have_none() -> None:
    for texts in ([], [[]], [B, B]):
        hashes, ends = ngram_hashes(texts, 3)
        assert len(hashes) == 0 and ends.tolist() == [0] * len(texts)
