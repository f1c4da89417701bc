"""A language model that judges: which of two responses is better, in both orders, or how good one is."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data.endpoint import ChatEndpoint, Conversation
from data.errors import StageError
from data.questions import ask_about, read_template
from data.schema import Prompt
from rewards.contract import Episode
from rewards.judge_config import JudgeRewardConfig, PairJudgeConfig
from rewards.judge_questions import (
    GRADE_FIELDS,
    GRADE_REMINDER,
    GRADE_TEMPLATE,
    PAIR_FIELDS,
    PAIR_REMINDER,
    PAIR_TEMPLATE,
    Verdict,
    read_grade,
    read_verdict,
    reminded,
    shown_prompt,
)

logger = logging.getLogger(__name__)

_MOST_UNPARSED = 0.5

_Found = TypeVar("_Found")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Comparison:
    """What a judge said of two responses in both orders.

    Attributes:
        forward: With the first response shown first; None where the answer could not be read.
        backward: With the second one shown first, in terms of the responses: `first` is still the first response.
    """

    forward: Verdict | None
    backward: Verdict | None

    @property
    def value(self) -> float | None:
        """1 where the first response wins, 0 where the second does, 0.5 for a tie; None where an answer is missing.

        A win in one order alone is a tie (Zheng et al. 2023, section 3.4, https://arxiv.org/abs/2306.05685).
        """
        if self.forward is None or self.backward is None:
            return None
        if self.forward == self.backward:
            return {"first": 1.0, "second": 0.0, "tie": 0.5}[self.forward]
        return 0.5

    @property
    def follows_position(self) -> bool:
        """Whether the judge preferred the same place, whichever response stood there."""
        return {self.forward, self.backward} == {"first", "second"}


class PairJudge:
    """Compares responses."""

    def __init__(self, config: PairJudgeConfig, config_dir: Path | None, cache: Path, *, setting: str) -> None:
        """Prepare; nothing is sent.

        Args:
            config: Which model, and what it is asked.
            config_dir: Folder of the configuration file, for relative paths in it.
            cache: File of the answers.
            setting: The section's key in the configuration, for messages.

        Raises:
            ConfigError: The template or the token is not there.
        """
        self._template = read_template(config.template, PAIR_TEMPLATE, PAIR_FIELDS, config_dir, f"{setting}.template")
        self.endpoint = ChatEndpoint(config.endpoint, cache, setting=f"{setting}.endpoint")

    def __call__(
        self, pairs: Sequence[tuple[Prompt, str, str]], *, progress: Progress = lambda done, total: None
    ) -> list[Comparison]:
        """Compare the two responses of each pair, in both orders.

        Raises:
            StageError: The endpoint fails for good.
        """
        questions = [
            ask_about(self._template, {"prompt": shown_prompt(prompt), "first": one, "second": other})
            for prompt, first, second in pairs
            for one, other in ((first, second), (second, first))
        ]
        verdicts: list[Verdict | None] = _asked(self.endpoint, questions, PAIR_REMINDER, read_verdict, progress)
        turned: dict[Verdict | None, Verdict | None] = {"first": "second", "second": "first", "tie": "tie", None: None}
        return [
            Comparison(forward, turned[backward])
            for forward, backward in zip(verdicts[::2], verdicts[1::2], strict=True)
        ]


class JudgeReward:
    """Grades of responses, scaled to [0, 1]."""

    def __init__(self, config: JudgeRewardConfig, config_dir: Path | None, cache: Path) -> None:
        """Prepare; nothing is sent. Arguments and errors as `PairJudge`."""
        key = f"{config.setting}.template"
        self._template = read_template(config.template, GRADE_TEMPLATE, GRADE_FIELDS, config_dir, key)
        self._config = config
        self._endpoint = ChatEndpoint(config.endpoint, cache, setting=f"{config.setting}.endpoint")

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One score an episode; one half where no grade could be read, which the log counts.

        Raises:
            StageError: The endpoint fails for good, or no grade can be read from most of its answers.
        """
        config = self._config
        scale = {"lowest": str(config.lowest), "highest": str(config.highest)}
        questions = [
            ask_about(
                self._template,
                {"prompt": shown_prompt(episode.prompt), "response": episode.response_text} | scale,
            )
            for episode in episodes
        ]
        grades = _asked(
            self._endpoint,
            questions,
            GRADE_REMINDER,
            lambda answer: read_grade(answer, config.lowest, config.highest),
            lambda done, total: None,
        )
        missing = grades.count(None)
        if missing > _MOST_UNPARSED * len(grades):
            raise StageError(
                f"{config.setting}: no grade from {config.lowest} to {config.highest} can be read from {missing} of "
                f"{len(grades)} answers of {config.endpoint.model}; a model that follows the question is needed: use "
                f"another one, raise `endpoint.max_tokens`, or give a `template` that it understands"
            )
        if missing:
            logger.warning(
                "%s: no grade in %d of %d answers; they count as the middle", config.setting, missing, len(grades)
            )
        span = config.highest - config.lowest
        return [0.5 if grade is None else (grade - config.lowest) / span for grade in grades]


def _asked(
    endpoint: ChatEndpoint,
    questions: Sequence[Conversation],
    reminder: str,
    read: Callable[[str], _Found],
    progress: Progress,
) -> list[_Found]:
    """What each answer says; one that says nothing (None) is asked for once more."""
    answers = endpoint.ask_all(questions, progress=progress)
    found = [read(answer) for answer in answers]
    again = [row for row, value in enumerate(found) if value is None]
    second = endpoint.ask_all([reminded(tuple(questions[row]), answers[row], reminder) for row in again])
    for row, answer in zip(again, second, strict=True):
        found[row] = read(answer)
    return found
