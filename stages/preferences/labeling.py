"""The labeling of one run on disk: what is asked, of whom, and how far it is.

    <stage_dir>/labels/
        questions.jsonl     what people are asked, in the order in which it comes up
        job.json            how many labels are wanted, and from whom
        labels.sqlite       every click
        server.json         port and token of the page, for its owner alone

The stage writes the first two, the page the others. Imports nothing heavy, so that the page starts at once.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ArtifactError, ConfigError
from data.schema import Prompt
from stages.artifacts import write_json
from stages.preferences.judgements import Click, ClickKind, Judgement, Judgements, agreement, fault_of, name_fault
from stages.preferences.label_store import LABELS, LabelStore
from stages.seeds import derive_seed

LABELING = "labels"
"""Name of the folder in that of the stage."""
_QUESTIONS, _JOB = "questions.jsonl", "job.json"
_OPEN_SECONDS = 900.0
"""How long a question is kept for who has it before him."""


@dataclass(frozen=True)
class Question:
    """A prompt and the responses that are to be ranked.

    Attributes:
        identity: Of `Candidates.identity`; judgements are kept under it.
        prompt: Text, or messages with `role` and `content`.
        responses: In the order of the policy's sampling, not in that of the page.
    """

    identity: str
    prompt: str | list[dict[str, str]]
    responses: list[str]


@dataclass(frozen=True)
class Job:
    """How the questions are to be judged.

    Attributes:
        annotators: Whose labels count; None takes everybody's.
        labels_per_prompt: How many people judge a question.
        needed: Questions that have to be judged before the run goes on.
        seed: Of the order of the responses.
    """

    annotators: list[str] | None
    labels_per_prompt: int
    needed: int
    seed: int


@dataclass(frozen=True)
class LabelingProgress:
    """How far it is.

    Attributes:
        done: Questions with as many judgements as are wanted.
        needed: As many have to be done before the run goes on.
        total: Questions in all.
    """

    done: int
    needed: int
    total: int

    @property
    def is_enough(self) -> bool:
        """Whether the run can go on."""
        return self.done >= self.needed


class ClickError(Exception):
    """A click that cannot be taken; the text is for who clicked."""


def plain_prompt(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as JSON has it."""
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


def write_labeling(folder: Path, questions: Sequence[Question], job: Job) -> None:
    """Put questions before people; the clicks that are there already stay.

    Args:
        folder: `labels` in the stage's folder.
        questions: In the order in which they come up.
        job: How they are to be judged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"identity": q.identity, "prompt": q.prompt, "responses": q.responses} for q in questions]
    new = folder / f".{_QUESTIONS}.new"
    new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    new.replace(folder / _QUESTIONS)
    write_json(folder / _JOB, vars(job))


class Labeling:
    """The labeling of a run, for the page and for who waits; the files are read again where they have changed."""

    def __init__(self, folder: Path) -> None:
        """Read what the stage wrote.

        Raises:
            ConfigError: The run has nothing to label, or not yet.
            ArtifactError: The files are not as they were written.
        """
        self.folder = folder
        self.store = LabelStore(folder / LABELS)
        self._stamp: tuple[int, int] | None = None
        self.refresh()

    def refresh(self) -> None:
        """Take in what others have written since."""
        try:
            status = (self.folder / _JOB).stat()
        except FileNotFoundError:
            raise ConfigError(
                f"{self.folder}: there is nothing to label (yet); a run with `preferences.labeler.type: human` puts "
                f"questions there once it has sampled responses; start one, or wait until it says so"
            ) from None
        if (stamp := (status.st_ino, status.st_mtime_ns)) != self._stamp:
            self._read()
            self._stamp = stamp
        self.judgements.take(self.store.clicks(after=self.judgements.last_number))

    def _read(self) -> None:
        try:
            self.job = Job(**json.loads((self.folder / _JOB).read_bytes()))
            lines = (self.folder / _QUESTIONS).read_text(encoding="utf-8").split("\n")
            self.questions = {q.identity: q for q in (Question(**json.loads(line)) for line in lines if line)}
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"{self.folder}: the questions cannot be read ({error}); they must be as the stage wrote them; "
                f"`rlhf resume` writes them again, and keeps all labels"
            ) from error
        self.judgements = Judgements({identity: len(q.responses) for identity, q in self.questions.items()})

    def final(self) -> list[Judgement]:
        """The judgements that count."""
        return self.judgements.final(self.job.annotators)

    def counts(self) -> Counter[str]:
        """By question, how many judgements it has."""
        return Counter(judgement.question for judgement in self.final())

    def progress(self) -> LabelingProgress:
        """How far it is."""
        counts = self.counts()
        done = sum(counts[identity] >= self.job.labels_per_prompt for identity in self.questions)
        return LabelingProgress(done, self.job.needed, len(self.questions))

    def agreement(self) -> float | None:
        """Ordinal alpha of all that counts."""
        return agreement(self.final())

    def check_annotator(self, name: Any) -> str:
        """Give the name back.

        Raises:
            ClickError: It is no name, or not one of those whose labels count.
        """
        if fault := name_fault(name):
            raise ClickError(fault)
        if self.job.annotators is not None and name not in self.job.annotators:
            raise ClickError(f"{name!r} is not among the annotators of this run: {', '.join(self.job.annotators)}")
        return str(name)

    def click(self, annotator: str, question: str, kind: ClickKind, data: Mapping[str, Any], click_id: str) -> None:
        """Save a click; it is on disk when this returns.

        Raises:
            ClickError: It does not fit the question, or the ranking is not whole.
            StorageError: It cannot be saved.
        """
        asked = self.questions.get(question)
        if asked is None:
            raise ClickError("this run does not ask that question")
        if fault := fault_of(kind, data, len(asked.responses)):
            raise ClickError(fault)
        judgement = self.judgements.of(annotator, question)
        if kind == "done" and (judgement is None or not judgement.is_ranked):
            raise ClickError("a response has no rank yet")
        self.store.append(Click(annotator, question, kind, data), click_id)
        self.refresh()

    def undo(self, annotator: str, click_id: str) -> str | None:
        """Take back the last click of somebody, also on an earlier question.

        Returns:
            The question that it was about; None where there is nothing to take back, or this undo was saved before.
        """
        last = self.judgements.last_click(annotator)
        if last is None:
            return None
        is_new = self.store.append(Click(annotator, last.question, "undo", {"undoes": last.number}), click_id)
        self.refresh()
        return last.question if is_new else None

    def next_question(self, annotator: str, *, beyond: bool = False) -> Question | None:
        """What to ask somebody now: what he has begun, else the first that wants judgements and nobody else has open.

        Args:
            annotator: Who.
            beyond: Also ask what has enough judgements, for the agreement.
        """
        now = time.time()
        elsewhere = self.store.questions_open_with_others(annotator, since=now - _OPEN_SECONDS)
        counts = self.counts()
        open_ones: list[Question] = []
        for question in self.questions.values():
            judgement = self.judgements.of(annotator, question.identity)
            if judgement is not None and judgement.decision is not None:
                continue
            if judgement is not None and any(rank is not None for rank in judgement.ranks):
                open_ones = [question]
                break
            if beyond or counts[question.identity] < self.job.labels_per_prompt:
                open_ones.append(question)
        free = [question for question in open_ones if question.identity not in elsewhere]
        chosen = next(iter(free or open_ones), None)
        if chosen is not None:
            self.store.open_question(annotator, chosen.identity, now)
        return chosen

    def order(self, annotator: str, question: Question) -> list[int]:
        """The responses as they stand on this person's page: a random order for each person and question."""
        order = list(range(len(question.responses)))
        random.Random(derive_seed(self.job.seed, f"order/{annotator}/{question.identity}", 0)).shuffle(order)
        return order


def labeling_progress(folder: Path) -> LabelingProgress:
    """How far the labeling in a folder is."""
    return Labeling(folder).progress()
