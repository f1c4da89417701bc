"""From scored responses to preference pairs."""

import random
from collections.abc import Sequence
from itertools import combinations

from data.schema import PreferencePair
from rewards.contract import Episode


def rank_pairs(
    prompt: object,
    episodes: Sequence[Episode],
    scores: Sequence[float],
    *,
    pairs_per_prompt: int | None,
    label_noise: float,
    rng: random.Random,
) -> list[PreferencePair]:
    """Turn the scored responses to one prompt into pairs.

    Every pair of responses with different texts and different scores counts; those with the largest gap come
    first. A labeler who errs turns a pair around with probability `label_noise`.

    Args:
        prompt: The prompt, as the records have it.
        episodes: Its responses.
        scores: Their scores, higher is better.
        pairs_per_prompt: Keep at most this many pairs; None keeps all.
        label_noise: Probability of an error.
        rng: Source of the errors.
    """
    ranked = sorted(
        (
            (first, second) if scores[first] > scores[second] else (second, first)
            for first, second in combinations(range(len(episodes)), 2)
            if scores[first] != scores[second]
            and episodes[first].response_text.strip() != episodes[second].response_text.strip()
        ),
        key=lambda pair: (scores[pair[1]] - scores[pair[0]], pair),
    )
    pairs = []
    for better, worse in ranked[:pairs_per_prompt]:
        if rng.random() < label_noise:
            better, worse = worse, better
        chosen, rejected = episodes[better].response_text, episodes[worse].response_text
        if chosen.strip() and rejected.strip():
            pairs.append(PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected))
    return pairs
