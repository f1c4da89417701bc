"""Opinions of people: asks them by files that `rlhf label` serves, and reads what they clicked."""

import json
import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path

from stages.preferences.config import HumanLabelerConfig
from stages.preferences.contract import Candidates, Opinion
from stages.preferences.judgements import Judgement, agreement, opinion_of
from stages.preferences.labeling import Job, Labeling, Question, plain_prompt, write_labeling
from stages.seeds import derive_seed
from stages.waiting import WaitingForPeople

logger = logging.getLogger(__name__)

USED = "labels.jsonl"
"""In the artifact: the judgements that the pairs were made from."""


class HumanLabeler:
    """Judges by what people said. Where they have not said enough, the stage has to wait."""

    def __init__(
        self,
        config: HumanLabelerConfig,
        folder: Path,
        *,
        seed: int,
        only_finished: bool,
        priority: Sequence[float] | None,
    ) -> None:
        """Keep the settings.

        Args:
            config: Who judges, and how much of it is enough.
            folder: Where questions and labels are kept.
            seed: Of the run.
            only_finished: Whether responses that the length limit cut off make no pairs, so that nobody need read them.
            priority: One number a prompt, the highest comes up first; None gives a random order.
        """
        self._config = config
        self._folder = folder
        self._seed = seed
        self._only_finished = only_finished
        self._priority = priority
        self._used: list[Judgement] = []
        self._place: dict[str, int] = {}

    def __call__(self, candidates: Sequence[Candidates]) -> list[Opinion]:
        """One opinion for each.

        Raises:
            WaitingForPeople: They have not judged enough yet.
        """
        shown = [_worth_reading(each, only_finished=self._only_finished) for each in candidates]
        asked = {
            row: Candidates(tuple(each.episodes[index] for index in kept))
            for row, (each, kept) in enumerate(zip(candidates, shown, strict=True))
            if len(kept) > 1
        }
        self._place = {each.identity: row for row, each in asked.items()}
        logger.info("%d of %d prompts have responses to rank", len(asked), len(candidates))
        if not asked:
            self._used = []
            return [(None,) * len(each.episodes) for each in candidates]
        write_labeling(
            self._folder,
            [
                Question(
                    asked[row].identity,
                    plain_prompt(asked[row].prompt),
                    [episode.response_text for episode in asked[row].episodes],
                )
                for row in self._in_order(list(asked))
            ],
            self._job(len(self._place)),
        )
        labeling = Labeling(self._folder)
        if not labeling.progress().is_enough:
            raise WaitingForPeople(self._folder)
        self._used = sorted(labeling.final(), key=lambda j: (self._place[j.question], j.annotator))
        by_question: dict[str, list[Judgement]] = {}
        for judgement in self._used:
            by_question.setdefault(judgement.question, []).append(judgement)
        opinions: list[Opinion] = []
        for row, each in enumerate(candidates):
            opinion: list[float | None] = [None] * len(each.episodes)
            if row in asked:
                said = opinion_of(by_question.get(asked[row].identity, []), len(shown[row]))
                for index, value in zip(shown[row], said, strict=True):
                    opinion[index] = value
            opinions.append(tuple(opinion))
        return opinions

    def record(self, folder: Path) -> dict[str, float]:
        """Write the judgements that were used, without times, so that equal labels give equal bytes."""
        rows = [
            {
                "annotator": judgement.annotator,
                "question": judgement.question,
                "decision": judgement.decision,
                "ranks": list(judgement.ranks) if judgement.decision == "rank" else None,
                "order": list(judgement.order),
                "comment": judgement.comment,
            }
            for judgement in self._used
        ]
        text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        (folder / USED).write_text(text, encoding="utf-8", newline="\n")
        decisions = [judgement.decision for judgement in self._used]
        figures = {
            "labels": decisions.count("rank"),
            "skipped": decisions.count("skip"),
            "all_bad": decisions.count("all_bad"),
            "ties": sum(judgement.decision == "rank" and judgement.has_tie for judgement in self._used),
            "annotators": len({judgement.annotator for judgement in self._used}),
        }
        alpha = agreement(self._used)
        known = {} if alpha is None else {"human/krippendorff_alpha": alpha}
        return {f"human/{name}": float(value) for name, value in figures.items()} | known

    def _in_order(self, rows: list[int]) -> list[int]:
        if self._priority is None:
            random.Random(derive_seed(self._seed, "order of questions", 0)).shuffle(rows)
            return rows
        priority = self._priority
        return sorted(rows, key=lambda row: (-priority[row], row))

    def _job(self, total: int) -> Job:
        wanted = self._config.min_prompts
        needed = math.ceil(self._config.min_share * total) if wanted is None else min(wanted, total)
        names = None if self._config.annotators == "any" else list(self._config.annotators)
        return Job(names, self._config.labels_per_prompt, needed, self._seed)


def _worth_reading(candidates: Candidates, *, only_finished: bool) -> list[int]:
    """The responses that could make a pair: finished, not empty, each text once."""
    kept: dict[str, int] = {}
    for index, episode in enumerate(candidates.episodes):
        text = episode.response_text.strip()
        if text and (episode.finished or not only_finished):
            kept.setdefault(text, index)
    return list(kept.values())
