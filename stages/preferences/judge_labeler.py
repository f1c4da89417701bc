"""Opinions of a language model: how many of its comparisons each response wins."""

import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rewards.judge import Comparison, PairJudge
from rewards.rules import build_rule_reward
from stages.contract import StageContext
from stages.preferences.config import JudgeLabelerConfig
from stages.preferences.contract import Candidates, Opinion
from stages.seeds import derive_seed

JUDGEMENTS = "judgements.jsonl"
"""In the artifact: the comparisons that the pairs were made from."""

_CACHE = "judge_answers.sqlite"
_SETTING = "preferences.labeler"

_Pair = tuple[int, int]


class JudgeLabeler:
    """Judges by comparisons of a model, in both orders. Its answers are kept in the stage's folder."""

    def __init__(self, config: JudgeLabelerConfig, context: StageContext, *, only_finished: bool) -> None:
        """Prepare; nothing is sent.

        Args:
            config: Which model, what it is asked, and how often.
            context: The stage's folder and seed.
            only_finished: Whether responses that the length limit cut off make no pairs, so that nobody need ask.
        """
        self._config, self._context, self._only_finished = config, context, only_finished
        self._judge = PairJudge(
            config.judge, context.config_dir, context.stage_dir / _CACHE, setting=f"{_SETTING}.judge"
        )
        self._compared: list[tuple[Candidates, _Pair, Comparison]] = []

    def __call__(self, candidates: Sequence[Candidates]) -> list[Opinion]:
        """For each response the number of comparisons that it won, ties half (Copeland's score, per comparison made).

        Raises:
            StageError: The endpoint fails for good; what it answered is kept for the next try.
        """
        asked = [(row, pair) for row, each in enumerate(candidates) for pair in self._pairs(each)]
        found = self._judge(
            [(candidates[row].prompt, *_texts(candidates[row], pair)) for row, pair in asked],
            progress=lambda done, total: self._context.report_progress(done, total, "answers of the judge"),
        )
        self._compared = [(candidates[row], pair, said) for (row, pair), said in zip(asked, found, strict=True)]
        values: list[dict[int, list[float]]] = [{} for _ in candidates]
        for (row, (first, second)), said in zip(asked, found, strict=True):
            if said.value is not None:
                values[row].setdefault(first, []).append(said.value)
                values[row].setdefault(second, []).append(1.0 - said.value)
        return [
            tuple(sum(own[index]) / len(own[index]) if index in own else None for index in range(len(each.episodes)))
            for each, own in zip(candidates, values, strict=True)
        ]

    def record(self, folder: Path) -> dict[str, float]:
        """Write the comparisons, and tell what they cost and how far they can be trusted."""
        rows = [
            {"question": each.identity, "pair": list(pair), "forward": said.forward, "backward": said.backward}
            for each, pair, said in self._compared
        ]
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        (folder / JUDGEMENTS).write_text(text, encoding="utf-8", newline="\n")
        said = [comparison for _, _, comparison in self._compared]
        read = [comparison for comparison in said if comparison.value is not None]
        usage = self._judge.endpoint.usage
        figures = {
            "judge/comparisons": len(said),
            "judge/unparsed": len(said) - len(read),
            "judge/ties": sum(comparison.value == 0.5 for comparison in read) / max(len(read), 1),
            "judge/order_agreement": sum(comparison.forward == comparison.backward for comparison in read)
            / max(len(read), 1),
            "judge/position_bias": sum(comparison.follows_position for comparison in read) / max(len(read), 1),
            "judge/requests": usage.requests,
            "judge/cached": usage.cached,
            "judge/retries": self._judge.endpoint.num_retries,
            "judge/prompt_tokens": usage.prompt_tokens,
            "judge/completion_tokens": usage.completion_tokens,
            "judge/cost": usage.cost,
        }
        agreement = self._agreement()
        return {name: float(value) for name, value in figures.items()} | (
            {} if agreement is None else {"judge/agreement": agreement}
        )

    def _pairs(self, each: Candidates) -> list[_Pair]:
        """The comparisons to make: all, or some that the seed and the responses choose."""
        usable = [
            index
            for index, episode in enumerate(each.episodes)
            if (episode.finished or not self._only_finished) and episode.response_text.strip()
        ]
        pairs = [
            (first, second)
            for first, second in combinations(usable, 2)
            if each.episodes[first].response_text.strip() != each.episodes[second].response_text.strip()
        ]
        most = self._config.comparisons_per_prompt
        if most is None or len(pairs) <= most:
            return pairs
        rng = random.Random(derive_seed(self._context.seed, f"judge/{each.identity}", 0))
        return sorted(rng.sample(pairs, most))

    def _agreement(self) -> float | None:
        """Share of the comparisons with a winner in which a rule prefers the same response; its ties count half."""
        if self._config.agreement_with is None:
            return None
        reward = build_rule_reward(self._config.agreement_with)
        decided = [(each, pair, said.value) for each, pair, said in self._compared if said.value in (0.0, 1.0)]
        if not decided:
            return None
        scores = reward([each.episodes[index] for each, pair, _ in decided for index in pair])
        agreed = 0.0
        for (_, _, value), first, second in zip(decided, scores[::2], scores[1::2], strict=True):
            sign = (first > second) - (first < second)
            agreed += 0.5 + 0.5 * sign * (1 if value == 1.0 else -1)
        return agreed / len(decided)


def _texts(each: Candidates, pair: _Pair) -> tuple[str, str]:
    first, second = pair
    return each.episodes[first].response_text, each.episodes[second].response_text
