"""One stage of a run: taken from another run or the store, or executed. Knows nothing of Prefect."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

from data.errors import ConfigError
from pipeline.console import duration, metrics_text
from pipeline.dataset_checks import check_dataset
from pipeline.launch import Log, Progress, execute
from pipeline.locks import locked, release, try_lock
from pipeline.runs import artifact_record
from pipeline.session import Recorded, Session
from pipeline.store import (
    LOCKS,
    adopt,
    lookup,
    model_section,
    read_manifest,
    stage_fingerprint,
    stage_section,
    told_by,
    verify_recorded,
)
from pipeline.waiting import Pausing, wait_for_labels
from stages.checkpoint import CHECKPOINTS
from stages.contract import Artifact, CheckpointSchedule, StageName, artifact_from_json
from stages.leftovers import remove_leftovers, remove_stage_leftovers
from stages.run import StageSpec
from stages.waiting import WaitingForPeople


@dataclass(frozen=True)
class StageOutcome:
    """How a stage ended well."""

    stage: StageName
    status: Literal["executed", "cached"]
    artifact: Artifact
    metrics: Mapping[str, Any]
    seconds: float


def run_stage_task(
    session: Session,
    stage: StageName,
    inputs: Mapping[str, Artifact],
    log: Log,
    progress: Progress,
    on_execute: Callable[[], None] = lambda: None,
    pausing: Pausing = lambda reason: nullcontext(),
) -> StageOutcome:
    """Bring one stage to its result and write it into `run.json`.

    Args:
        session: The run.
        stage: Name of the stage.
        inputs: Its input artifacts, by role.
        log: Called with each line that the stage says.
        progress: Called with (steps done, steps in all, what is going on).
        on_execute: Called once before the stage is executed, and not where it is taken as it is.
        pausing: Entered while the stage waits for people.

    Raises:
        UserError: The user's input is at fault, or a stage that must be stored is not.
        StageError: The stage failed.
    """
    start = time.monotonic()
    run = session.run
    try:
        outcome = _take_or_execute(session, stage, inputs, log, progress, on_execute, pausing, start)
        if stage == "data":
            check_dataset(session.config, outcome.artifact.path, session.config_dir, session.stages)
        return outcome
    except BaseException as error:  # Ctrl-C too: whatever ends a stage, `run.json` says so
        seconds = round(time.monotonic() - start, 3)
        with suppress(OSError):  # a full disk is what `error` says already
            run.update_stage(stage, status="failed", seconds=seconds, error=str(error) or type(error).__name__)
        raise
    finally:
        session.console.end_progress()


def _take_or_execute(
    session: Session,
    stage: StageName,
    inputs: Mapping[str, Artifact],
    log: Log,
    progress: Progress,
    on_execute: Callable[[], None],
    pausing: Pausing,
    start: float,
) -> StageOutcome:
    run, plan, timings = session.run, session.plan, session.timings
    recorded = plan.recorded.get(stage)
    if recorded is not None:
        with timings.measure("hashing"):
            verify_recorded(run.store_dir, recorded.artifact, recorded.fingerprint)
        return _take(session, stage, inputs, recorded, start)
    with timings.measure("hashing"):
        fingerprint = stage_fingerprint(session.config, stage, inputs, session.config_dir)
    run.update_stage(stage, status="running", fingerprint=fingerprint)
    hit = _look_up(session, stage, fingerprint)
    if hit is None and stage in plan.stored:
        raise missing_in_store(stage)
    if hit is not None:
        return _take(session, stage, inputs, Recorded(hit, fingerprint), start)
    with _computing(session, stage, fingerprint):
        hit = _look_up(session, stage, fingerprint)  # whoever was waited for may have made it
        if hit is not None:
            return _take(session, stage, inputs, Recorded(hit, fingerprint), start)
        remove_leftovers(run.stage_dir(stage), run.store_dir, fingerprint)
        on_execute()
        return _execute(session, stage, inputs, fingerprint, log, progress, pausing, start)


def _look_up(session: Session, stage: StageName, fingerprint: str) -> Artifact | None:
    """What the store has for a stage that may be taken from there."""
    if stage in session.plan.forced:
        return None
    with session.timings.measure("hashing"):
        hit = lookup(session.run.store_dir, fingerprint)
    return None if hit is None else hit[0]


@contextmanager
def _computing(session: Session, stage: StageName, fingerprint: str) -> Iterator[None]:
    """Be the only one on this store who computes this stage."""
    run = session.run
    folder = run.store_dir / LOCKS
    folder.mkdir(parents=True, exist_ok=True)

    def tell(holder: str) -> None:
        session.console.line(f"{stage}: {holder} computes the same; waiting for its result")

    with locked(folder / f"{fingerprint}.lock", f"run {run.name} (process {os.getpid()})", tell):
        yield


def _clear_after_dead(session: Session, stage: StageName, fingerprint: str) -> None:
    """Remove what killed processes left of a stage that will not be executed again: its result is there."""
    run = session.run
    remove_stage_leftovers(run.stage_dir(stage))
    shutil.rmtree(run.stage_dir(stage) / CHECKPOINTS, ignore_errors=True)
    path = run.store_dir / LOCKS / f"{fingerprint}.lock"
    if not path.exists():
        return
    lock = try_lock(path)
    if lock is not None:  # else somebody is at work there, or this run itself
        remove_leftovers(run.stage_dir(stage), run.store_dir, fingerprint)
        release(lock, path)


def missing_in_store(stage: StageName) -> ConfigError:
    """The error for a stage that `--from` or `--only` expects in the store."""
    return ConfigError(
        f"{stage}: the store has no intact artifact for these settings, and `--from` and `--only` execute no "
        f"earlier stage; run without them, or from {stage} on with `--from {stage}`"
    )


def _take(
    session: Session, stage: StageName, inputs: Mapping[str, Artifact], taken: Recorded, start: float
) -> StageOutcome:
    run = session.run
    _clear_after_dead(session, stage, taken.fingerprint)
    recorded_in = None if taken.run is None else run.output_dir / taken.run / stage
    told = told_by(run.store_dir, taken.fingerprint, taken.artifact, recorded_in)
    manifest = {} if told is None else read_manifest(told)
    _tell_start(session, stage, inputs)
    with session.timings.measure("storing"):
        adopt(run.store_dir, told, taken.artifact, run.stage_dir(stage))
    known = run.stage(stage) or {}
    metrics = manifest.get("metrics", known.get("metrics", {}))  # on resume the run may be the last who knows
    seconds = time.monotonic() - start
    with session.timings.measure("storing"):
        _record(session, stage, "cached", taken, metrics, seconds)
    _tell_end(session, stage, {**manifest, "artifact": taken.artifact.to_json()}, "cached")
    session.console.line(f"{stage}: cached, {taken.artifact.digest[:12]} from the store")
    return StageOutcome(stage, "cached", taken.artifact, metrics, seconds)


def _execute(
    session: Session,
    stage: StageName,
    inputs: Mapping[str, Artifact],
    fingerprint: str,
    log: Log,
    progress: Progress,
    pausing: Pausing,
    start: float,
) -> StageOutcome:
    run, console = session.run, session.console
    spec = StageSpec(
        stage=stage,
        config=stage_section(session.config, stage),
        model={} if stage == "data" else model_section(session.config),
        inputs=dict(inputs),
        stage_dir=run.stage_dir(stage),
        store_dir=run.store_dir,
        seed=session.config.seed,
        device=_device(session),
        fingerprint=fingerprint,
        config_dir=session.config_dir,
        checkpoints=CheckpointSchedule(**session.config.launch.checkpoints.model_dump()),
    )

    def show(done: int, total: int, what: str) -> None:
        console.progress(stage, done, total, what)
        progress(done, total, what)

    console.line(f"{stage}: started")
    _tell_start(session, stage, inputs)
    try:
        manifest = None
        while manifest is None:
            try:
                manifest = execute(spec, session.config.launch, log, show)
            except WaitingForPeople as waiting:
                wait_for_labels(session, stage, waiting.folder, log, show, pausing)
    except BaseException:  # Ctrl-C too: the stage's W&B run must not stay open
        _tell_end(session, stage, None, "failed")
        raise
    console.end_progress()
    artifact = artifact_from_json(manifest["artifact"])
    seconds = time.monotonic() - start
    with session.timings.measure("storing"):
        _record(session, stage, "executed", Recorded(artifact, fingerprint), manifest["metrics"], seconds)
    _tell_end(session, stage, manifest, "executed")
    figures = metrics_text(manifest["metrics"])
    console.line(f"{stage}: done in {duration(seconds)}{': ' + figures if figures else ''}")
    return StageOutcome(stage, "executed", artifact, manifest["metrics"], seconds)


def _device(session: Session) -> Literal["cpu", "cuda"]:
    device = session.config.launch.device
    assert device != "auto", "the configuration is resolved"
    return device


def _tell_start(session: Session, stage: StageName, inputs: Mapping[str, Artifact]) -> None:
    with session.timings.measure("wandb_messages"):
        session.tracker.stage_started(
            stage,
            stage_section(session.config, stage),
            model_section(session.config),
            {role: artifact.to_json() for role, artifact in inputs.items()},
            session.run.stage_dir(stage) / "metrics.jsonl",
        )


def _tell_end(session: Session, stage: StageName, manifest: Mapping[str, Any] | None, status: str) -> None:
    with session.timings.measure("wandb_messages"):
        session.tracker.stage_finished(stage, manifest, status)


def _record(
    session: Session,
    stage: StageName,
    status: Literal["executed", "cached"],
    taken: Recorded,
    metrics: Mapping[str, Any],
    seconds: float,
) -> None:
    session.run.update_stage(
        stage,
        status=status,
        seconds=round(seconds, 3),
        fingerprint=taken.fingerprint,
        artifact=artifact_record(taken.artifact, session.run.output_dir),
        metrics=dict(metrics),
    )
