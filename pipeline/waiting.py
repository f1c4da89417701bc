"""Waits, without a model in memory, until people have done what a stage needs. Knows nothing of Prefect."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from data.errors import StageError
from pipeline.launch import Log, Progress
from pipeline.session import Session
from stages.contract import StageName
from stages.preferences.config import HumanLabelerConfig
from stages.preferences.labeling import Labeling, LabelingProgress

Pausing = Callable[[str], AbstractContextManager[None]]
"""Shows a run as paused, with the reason, as long as it lasts."""

_POLL_SECONDS = 1.0


def wait_for_labels(
    session: Session, stage: StageName, folder: Path, log: Log, progress: Progress, pausing: Pausing
) -> None:
    """Return when enough prompts are judged.

    Args:
        session: The run.
        stage: Which stage waits.
        folder: Of the labeling.
        log: Called with what is said in the stage's log.
        progress: Called with (prompts judged, prompts needed, what is going on) when that changes.
        pausing: Around the waiting.

    Raises:
        StageError: `timeout_hours` are over.
        KeyboardInterrupt: Somebody asked the run to end; all labels are kept.
    """
    labeling = Labeling(folder)
    found = labeling.progress()
    command = f"rlhf label {session.run.name}{session.run.output_dir_option}"
    deadline = _deadline(session)
    session.run.update_stage(stage, status="waiting")
    session.console.line(f"{stage}: waiting for labels: {_counts(found)} prompts; `{command}` serves the page")
    log(f"waiting for labels: {_counts(found)} prompts; no model is in memory")
    told: LabelingProgress | None = None
    with pausing(f"waiting for labels: {_counts(found)} prompts; {command}"):
        while not (found := _progress(labeling)).is_enough:
            if found != told:
                progress(found.done, found.needed, f"waiting for labels; {command}")
                told = found
            if deadline is not None and time.monotonic() > deadline:
                raise StageError(
                    f"{stage}: {_counts(found)} prompts are judged after preferences.labeler.timeout_hours="
                    f"{_labeler(session).timeout_hours:g}, and all of these are needed; the labels are kept: go on "
                    f"labeling with `{command}`, and `rlhf resume {session.run.name}{session.run.output_dir_option}` "
                    f"goes on"
                )
            time.sleep(_POLL_SECONDS)
    session.run.update_stage(stage, status="running")
    session.console.end_progress()
    session.console.line(f"{stage}: {_counts(found)} prompts are judged; going on")
    log(f"{_counts(found)} prompts are judged")


def _progress(labeling: Labeling) -> LabelingProgress:
    labeling.refresh()
    return labeling.progress()


def _counts(progress: LabelingProgress) -> str:
    return f"{progress.done} of {progress.needed}"


def _deadline(session: Session) -> float | None:
    hours = _labeler(session).timeout_hours
    return None if hours is None else time.monotonic() + hours * 3600


def _labeler(session: Session) -> HumanLabelerConfig:
    assert session.config.preferences is not None
    labeler = session.config.preferences.labeler
    assert isinstance(labeler, HumanLabelerConfig), "nothing else waits"
    return labeler
