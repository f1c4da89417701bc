"""Pairs put together again to the rankings that they come from, for a loss on whole rankings."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.batch_encoding import Ids
from stages.reward_model.evaluation_pairs import TokenizedPair


@dataclass(frozen=True)
class TokenizedRanking:
    """Responses to one prompt, and which is known to be better than which.

    Attributes:
        sequences: The prompt with each response, as token ids.
        worse: For each response the numbers of those that are worse.
    """

    sequences: tuple[Ids, ...]
    worse: tuple[tuple[int, ...], ...]


def rankings_of(pairs: Sequence[TokenizedPair]) -> list[TokenizedRanking]:
    """Put pairs of one ranking together.

    A pair that comes from none is a ranking of two. Where some pairs of a ranking were left out, say as too long, it
    says nothing of them.

    Args:
        pairs: In any order.

    Returns:
        In the order of the first pair of each.
    """
    groups: dict[tuple[object, ...], list[TokenizedPair]] = {}
    for number, pair in enumerate(pairs):
        # The prompt, too: a copy whose prompt was reworded comes from the same ranking.
        key = (number,) if pair.ranking is None else (pair.ranking, tuple(pair.prompt_ids))
        groups.setdefault(key, []).append(pair)
    return [_ranking(group) for group in groups.values()]


def _ranking(pairs: Sequence[TokenizedPair]) -> TokenizedRanking:
    places: dict[tuple[int, ...], int] = {}
    worse: dict[int, set[int]] = {}
    for pair in pairs:
        better, other = (
            places.setdefault(tuple(response), len(places)) for response in (pair.chosen_ids, pair.rejected_ids)
        )
        worse.setdefault(better, set()).add(other)
    prompt = tuple(pairs[0].prompt_ids)
    return TokenizedRanking(
        sequences=tuple((*prompt, *response) for response in places),
        worse=tuple(tuple(sorted(worse.get(place, ()))) for place in range(len(places))),
    )
