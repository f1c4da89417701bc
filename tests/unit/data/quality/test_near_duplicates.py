"""Near duplicates: what counts as one, against the exact Jaccard similarity."""

import random

import pytest

from data.quality.near_duplicates import near_duplicates
from data.quality.words import words_of

WORDS = [f"w{number}" for number in range(2000)]


def text(seed: int, count: int = 120) -> list[str]:
    """Words of a text that has nothing in common with others."""
    return random.Random(seed).choices(WORDS, k=count)


def jaccard(first: str, second: str) -> float:
    """The exact similarity that MinHash estimates."""
    a, b = (set(zip(*(words_of(each)[place:] for place in range(5)), strict=False)) for each in (first, second))
    return len(a & b) / len(a | b)


def test_clusters_are_what_the_exact_similarity_says() -> None:
    base, other = text(1), text(2)
    nearly = [*base[:118], "changed", "words"]
    half = [*base[:60], *text(3, 60)]
    texts = [" ".join(words) for words in (base, other, nearly, half, other)]
    assert jaccard(texts[0], texts[2]) > 0.9 and jaccard(texts[0], texts[3]) < 0.5
    assert [cluster.members for cluster in near_duplicates(texts, 0.8)] == [(0, 2), (1, 4)]


def test_many_texts_agree_with_all_exact_pairs() -> None:
    # 40 texts with changed words: similarities near 1 and far below, none around the threshold.
    rng = random.Random(7)
    texts = [" ".join(text(seed)) for seed in range(10)]
    for number in range(30):
        words = texts[number % 10].split()
        for place in rng.sample(range(len(words)), k=1 if number < 10 else 30):
            words[place] = f"new{number}-{place}"
        texts.append(" ".join(words))
    expected = {(i, j) for i in range(40) for j in range(i + 1, 40) if jaccard(texts[i], texts[j]) > 0.8}
    assert not any(0.65 < jaccard(a, b) < 0.85 for i, a in enumerate(texts) for b in texts[i + 1 :])
    found = {
        (i, j) for cluster in near_duplicates(texts, 0.75) for i in cluster.members for j in cluster.members if i < j
    }
    assert found >= expected
    assert all(jaccard(texts[i], texts[j]) > 0.6 for i, j in found)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Hello, World!", "hello world", "hello"], [(0, 1)]),
        (["你好世界今天天气", "你好，世界！今天天气。", "再见"], [(0, 1)]),
        (["", "  ", "!!!"], []),
        ([], []),
    ],
)
def test_short_texts_in_any_script(texts: list[str], expected: list[tuple[int, ...]]) -> None:
    assert [cluster.members for cluster in near_duplicates(texts, 0.8)] == expected
