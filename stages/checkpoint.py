"""Checkpoints of a stage that is running: each whole or not there, the newest intact one first.

    <stage_dir>/checkpoints/step-00000012/
        checkpoint.json     format, step, fingerprint of the stage, SHA-256 of each file
        ...                 what the stage wrote

A folder is filled under another name and renamed when all of it is on disk, so that a kill at any moment leaves the
checkpoint before it. What is read was verified against its digests, and belongs to the same fingerprint: settings,
inputs, seed and code of the execution that goes on.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stages.artifacts import file_digests, payload_files, write_json
from stages.contract import CheckpointSchedule, StageContext
from stages.interruption import Interrupted, Interruption
from stages.storage import storage_error

if TYPE_CHECKING:  # it imports torch
    from stages.ranks import Ranks

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the layout; a checkpoint of another one is not read."""

CHECKPOINTS = "checkpoints"
"""Name of the folder in that of the stage."""

_DESCRIPTION = "checkpoint.json"
_PREFIX, _WRITING = "step-", ".writing-"
_SECONDS_A_MINUTE = 60.0


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: Its folder.
        step: Steps that were done when it was written.
    """

    path: Path
    step: int


class Checkpoints:
    """The checkpoints of one execution of a stage."""

    def __init__(
        self,
        stage_dir: Path,
        fingerprint: str,
        schedule: CheckpointSchedule,
        interruption: Interruption | None = None,
        timings: dict[str, float] | None = None,
    ) -> None:
        """Look at nothing yet. A stage takes `Checkpoints.of(context)`.

        Args:
            stage_dir: Folder of this execution in its run.
            fingerprint: Of the stage; checkpoints of another one are not read.
            schedule: When to write.
            interruption: Who asks the stage to end gets a checkpoint first.
            timings: Has the seconds of all writes added under `checkpoints`.
        """
        self._folder = stage_dir / CHECKPOINTS
        self._fingerprint = fingerprint
        self._schedule = schedule
        self._interruption = interruption or Interruption()
        self._timings = {} if timings is None else timings
        self._asked_by = 0
        self._last_time = time.monotonic()

    @classmethod
    def of(cls, context: StageContext) -> Self:
        """Those of the execution that a stage's context belongs to."""
        return cls(context.stage_dir, context.fingerprint, context.checkpoints, context.interruption, context.timings)

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint of this fingerprint. Damaged ones are passed over, and told."""
        for path in sorted(self._folder.glob(f"{_PREFIX}*"), reverse=True):
            problem, step = self._problem(path)
            if problem is None:
                return Checkpoint(path, step)
            logger.warning("checkpoint %s is not used: %s", path, problem)
        return None

    def write_if_due(self, step: int, save: Callable[[Path], None], ranks: "Ranks") -> None:
        """Write a checkpoint where the schedule asks for one. All ranks call it after the same steps.

        Args:
            step: Steps done.
            save: Writes this rank's part into the folder that it is given; the names are the ranks' own affair.
            ranks: Processes of the stage; the clock of the main one counts.

        Raises:
            Interrupted: Somebody asked the stage to end; the checkpoint is written.
            StorageError: There is no room for it; those before it stay.
        """
        if self.is_due(step, ranks):
            self.write(step, save, ranks)

    def is_due(self, step: int, ranks: "Ranks") -> bool:
        """Whether a checkpoint has to be written after this step; the same on all ranks.

        It has to where the schedule says so, and where somebody asked any rank to end.
        """
        answers = ranks.gather([[self._is_due(step), self._interruption.number or 0]])
        self._asked_by = max(number for _, number in answers)
        return bool(answers[0][0]) or self._asked_by > 0

    def write(self, step: int, save: Callable[[Path], None], ranks: "Ranks", *, started: float | None = None) -> None:
        """Write a checkpoint now; arguments and errors as for `write_if_due`.

        Args:
            step: Steps done.
            save: Writes this rank's part.
            ranks: Processes of the stage.
            started: When (`time.monotonic`) the work for it began, where that is not now.
        """
        start = time.monotonic() if started is None else started
        writing = self._folder / f"{_WRITING}{step:08d}"
        if ranks.is_main:
            self._remove_unfinished()
            writing.mkdir(parents=True)
        ranks.barrier()
        try:
            save(writing)
            ranks.barrier()
            size = self._complete(writing, step) if ranks.is_main else 0
            ranks.barrier()
        except Exception as error:
            problem = storage_error(error, self._folder)
            shutil.rmtree(writing, ignore_errors=True)
            if problem is not None:
                raise problem from error
            raise
        self._last_time = time.monotonic()
        seconds = self._last_time - start
        self._timings["checkpoints"] = self._timings.get("checkpoints", 0.0) + seconds
        if ranks.is_main:
            logger.info("checkpoint of step %d: %.2f MiB in %.3f s", step, size / 2**20, seconds)
        if self._asked_by:
            logger.info("ended on request after step %d, which is kept in a checkpoint", step)
            raise Interrupted(self._asked_by)

    def remove_all(self) -> None:
        """Forget everything: the stage has its artifact."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_due(self, step: int) -> bool:
        schedule = self._schedule
        by_steps = schedule.every_steps is not None and step % schedule.every_steps == 0
        waited = time.monotonic() - self._last_time
        return by_steps or (schedule.every_minutes is not None and waited >= schedule.every_minutes * _SECONDS_A_MINUTE)

    def _complete(self, writing: Path, step: int) -> int:
        """Describe, flush to disk, rename, and drop the oldest ones; returns its size in bytes."""
        size = sum(path.stat().st_size for path in payload_files(writing))
        description = {
            "format": FORMAT,
            "step": step,
            "fingerprint": self._fingerprint,
            "files": file_digests(writing),
        }
        for path in payload_files(writing):
            _flush(path)
        write_json(writing / _DESCRIPTION, description)
        final = self._folder / f"{_PREFIX}{step:08d}"
        shutil.rmtree(final, ignore_errors=True)  # a damaged one, or one of other settings
        os.rename(writing, final)
        _flush(self._folder)
        for path in sorted(self._folder.glob(f"{_PREFIX}*"))[: -self._schedule.keep]:
            shutil.rmtree(path, ignore_errors=True)
        return size

    def _problem(self, path: Path) -> tuple[str | None, int]:
        """What speaks against reading a checkpoint, and its step."""
        try:
            description: dict[str, Any] = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{_DESCRIPTION} cannot be read ({error})", 0
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            return f"its format is not {FORMAT}", 0
        if description.get("fingerprint") != self._fingerprint:
            return "it belongs to other settings, inputs or code", 0
        found = {name: digest for name, digest in file_digests(path).items() if name != _DESCRIPTION}
        expected = description.get("files")
        if found != expected:
            names = sorted(set(found.items()) ^ set(expected.items())) if isinstance(expected, dict) else []
            changed = ", ".join(sorted({name for name, _ in names}))
            return f"files are missing or changed: {changed}", 0
        return None, int(description["step"])

    def _remove_unfinished(self) -> None:
        """What a killed writer left."""
        for path in self._folder.glob(f"{_WRITING}*"):
            shutil.rmtree(path, ignore_errors=True)


def newest_step(stage_dir: Path) -> int | None:
    """The step of a stage's newest checkpoint, by its name alone: for messages; None where there is none."""
    names = sorted(path.name for path in (stage_dir / CHECKPOINTS).glob(f"{_PREFIX}*"))
    return int(names[-1].removeprefix(_PREFIX)) if names else None


def _flush(path: Path) -> None:
    """Have the file, or the folder's entries, on disk before anything that relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
