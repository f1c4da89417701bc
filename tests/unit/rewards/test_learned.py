"""The learned rewards: ids are handed through as they are, text with the raw prompt and how it ended."""

from collections.abc import Sequence

from data.schema import Message, Prompt
from rewards.contract import Episode
from rewards.learned import LearnedReward, LearnedTextReward


class _Stub:
    """Scores by the ids alone."""

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Sum of the prompt plus a tenth of the response's last token."""
        return [sum(p) + r[-1] / 10 for p, r in zip(prompts, responses, strict=True)]


class _TextStub:
    """Scores by the text alone."""

    def score_texts(self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """Lengths of prompt and response, and a half where it ended."""
        return [100.0 * len(p) + len(r) + f / 2 for p, r, f in zip(prompts, responses, finished, strict=True)]


def test_scores_come_from_the_ids() -> None:
    episodes = [
        Episode("text", "misleading", (1, 2), (3, 4), "other", True),
        Episode("", "", (5,), (6,), "", False),
    ]
    assert LearnedReward(_Stub())(episodes) == [3.4, 5.6]
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
