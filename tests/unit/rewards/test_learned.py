"""The learned rewards: ids are handed through as they are, text with the raw prompt and how it ended."""

from collections.abc import Sequence

import pytest

from data.schema import Message, Prompt
from rewards.contract import Episode
from rewards.learned import LearnedReward, LearnedTextReward


class _Stub:
    """Scores by the ids alone."""

    num_members = 2

    def score_members(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Sum of the prompt plus a tenth of the response's last token, and 1 more."""
        first = [sum(p) + r[-1] / 10 for p, r in zip(prompts, responses, strict=True)]
        return [first, [score + 1 for score in first]]


class _TextStub:
    """Scores by the text alone."""

    num_members = 1

    def score_texts_by_member(
        self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool]
    ) -> list[list[float]]:
        """Lengths of prompt and response, and a half where it ended."""
        return [[100.0 * len(p) + len(r) + f / 2 for p, r, f in zip(prompts, responses, finished, strict=True)]]


def test_scores_come_from_the_ids() -> None:
    episodes = [
        Episode("text", "misleading", (1, 2), (3, 4), "other", True),
        Episode("", "", (5,), (6,), "", False),
    ]
    reward = LearnedReward(_Stub())
    assert reward.by_member(episodes) == [[3.4, 5.6], [4.4, 6.6]] and reward.num_members == 2
    assert reward(episodes) == pytest.approx([3.9, 6.1]), "their mean"
    assert LearnedReward(_Stub())([]) == []


def test_scores_come_from_the_records_prompt_the_response_and_how_it_ended() -> None:
    turns = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Ho"),
        Message(role="user", content=""),
    )
    episodes = [
        Episode("as rendered", "four", (1, 2), (3,), turns, True),
        Episode("as rendered", "three", (1, 2), (3,), "p", False),
    ]
    assert LearnedTextReward(_TextStub())(episodes) == [304.5, 105.0]
    assert LearnedTextReward(_TextStub())([]) == []
