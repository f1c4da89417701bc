"""From scores to pairs: every distinct pair once, the widest first, errors as often as asked."""

import random

import pytest

from data.schema import PreferencePair
from rewards.contract import Episode
from stages.preferences.contract import Candidates
from stages.preferences.ranking import rank_pairs


def _pairs(
    texts: list[str], opinion: list[float | None], *, limit: int | None = None, noise: float = 0.0, seed: int = 0
) -> list[tuple[str, str]]:
    candidates = Candidates(tuple(Episode("p", text, (1,), (2,), "p", True) for text in texts))
    rng = random.Random(seed)
    found = rank_pairs(candidates, tuple(opinion), pairs_per_prompt=limit, label_noise=noise, rng=rng)
    assert all(isinstance(pair, PreferencePair) and pair.prompt == "p" for pair in found)
    return [(pair.chosen, pair.rejected) for pair in found]


def test_all_pairs_with_the_widest_gap_first() -> None:
    # gaps: c over b 3, a over b 2, c over a 1
    assert _pairs(["a", "b", "c"], [2.0, 0.0, 3.0]) == [("c", "b"), ("a", "b"), ("c", "a")]
    assert _pairs(["a", "b", "c"], [2.0, 0.0, 3.0], limit=1) == [("c", "b")]
    assert len(_pairs(list("abcdef"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])) == 15


def test_what_reward_models_dispute_comes_before_the_widest_gap() -> None:
    candidates = Candidates(tuple(Episode("p", text, (1,), (2,), "p", True) for text in "abc"))

    def pairs(*disagreements: float, limit: int | None = None) -> list[tuple[str, str]]:
        found = rank_pairs(
            candidates, (2.0, 0.0, 3.0), pairs_per_prompt=limit, label_noise=0.0, rng=random.Random(0),
            disagreements=disagreements,
        )  # fmt: skip
        return [(pair.chosen, pair.rejected) for pair in found]

    # Of the pairs (a, b), (a, c), (b, c), whichever of the two is better.
    assert pairs(0.1, 0.9, 0.5) == [("c", "a"), ("c", "b"), ("a", "b")]
    assert pairs(0.1, 0.9, 0.5, limit=1) == [("c", "a")]
    assert pairs(0.5, 0.5, 0.5) == [("c", "b"), ("a", "b"), ("c", "a")]


def test_equal_gaps_keep_the_order_of_the_responses() -> None:
    assert _pairs(["a", "b", "c"], [0.0, 1.0, 2.0]) == [("c", "a"), ("b", "a"), ("c", "b")]


def test_equal_scores_equal_texts_and_empty_texts_make_no_pair() -> None:
    assert _pairs(["a", "b"], [1.0, 1.0]) == []
    assert _pairs(["a", " a "], [1.0, 2.0]) == []
    assert _pairs(["", "b", "  "], [1.0, 2.0, 3.0]) == []
    assert _pairs(["a"], [1.0]) == [] and _pairs([], []) == []


def test_what_was_not_judged_makes_no_pair() -> None:
    assert _pairs(["a", "b", "c"], [2.0, None, 3.0]) == [("c", "a")]
    assert _pairs(["a", "b"], [None, None]) == []


def test_the_labeler_errs_as_often_as_asked() -> None:
    texts = [chr(97 + number) for number in range(26)]
    scores: list[float | None] = [float(number) for number in range(26)]
    for noise, expected in ((0.0, 0.0), (0.3, 0.3), (0.5, 0.5)):
        pairs = _pairs(texts, scores, noise=noise)
        turned = sum(chosen < rejected for chosen, rejected in pairs) / len(pairs)
        # 325 pairs: standard error at most 0.028
        assert turned == pytest.approx(expected, abs=0.085)
    assert _pairs(texts, scores, noise=0.3) == _pairs(texts, scores, noise=0.3)
    assert _pairs(texts, scores, noise=0.3) != _pairs(texts, scores, noise=0.3, seed=1)
