"""From an opinion on the responses to one prompt to preference pairs."""

import random
from collections.abc import Sequence
from itertools import combinations

from data.schema import PreferencePair
from stages.preferences.contract import Candidates, Opinion


def rank_pairs(
    candidates: Candidates,
    opinion: Opinion,
    *,
    pairs_per_prompt: int | None,
    label_noise: float,
    rng: random.Random,
    disagreements: Sequence[float] | None = None,
) -> list[PreferencePair]:
    """Turn an opinion into pairs.

    Every pair of judged responses with different texts and different numbers counts; those with the largest gap come
    first, or those that reward models disagree on most. A labeler who errs turns a pair around with probability
    `label_noise`.

    Args:
        candidates: A prompt and its responses.
        opinion: How good each response is; None was not judged.
        pairs_per_prompt: Keep at most this many pairs; None keeps all.
        label_noise: Probability of an error.
        rng: Source of the errors.
        disagreements: One number a pair of all responses, in the order of `itertools.combinations`.
    """
    texts = [episode.response_text for episode in candidates.episodes]
    judged = {index: value for index, value in enumerate(opinion) if value is not None}
    disputed = dict(zip(combinations(range(len(texts)), 2), disagreements, strict=True)) if disagreements else {}
    ranked = sorted(
        (
            (first, second) if judged[first] > judged[second] else (second, first)
            for first, second in combinations(judged, 2)
            if judged[first] != judged[second] and texts[first].strip() != texts[second].strip()
        ),
        key=lambda pair: (-disputed.get((min(pair), max(pair)), 0.0), judged[pair[1]] - judged[pair[0]], pair),
    )
    kept = ranked[:pairs_per_prompt]
    ranking = candidates.identity if len(kept) > 1 else None
    pairs = []
    for better, worse in kept:
        if rng.random() < label_noise:
            better, worse = worse, better
        if texts[better].strip() and texts[worse].strip():
            texts_of = {"chosen": texts[better], "rejected": texts[worse]}
            pairs.append(PreferencePair(prompt=candidates.prompt, ranking=ranking, **texts_of))
    return pairs
