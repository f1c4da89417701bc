"""Checkpoints of Hugging Face's trainers, in the form of `stages.checkpoint`.

The trainer writes into its own folder, which is gone after a kill, and not in one piece; what is due is taken from
there into a checkpoint that is whole or not there. Each rank has such a folder, and adds the files that it alone has:
its random states, its shard of the optimizer.

    <checkpoint>/current/     as the trainer writes it: adapter, optimizer, schedule, random states, position
    <checkpoint>/best/        adapter of the best validation so far, where it is another one
    <checkpoint>/finished/    of several trainings in one stage: what those before this one made
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.accelerator import deepspeed_checkpoint_classes, num_processes, process_rank
from stages.checkpoint import Checkpoints
from stages.contract import StageContext
from stages.ranks import Ranks
from stages.safe_checkpoints import check_checkpoint
from stages.training_part import WHOLE, TrainingPart

FINISHED = "finished"
"""Folder of a checkpoint with what earlier trainings of the stage made."""

_CURRENT, _BEST = "current", "best"
_STATE = "trainer_state.json"
_PICKLED = "training_args.bin"  # the trainer never reads it, and nothing of ours is pickled


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Has the trainer save when a checkpoint is due, and takes it from there."""

    def __init__(self, context: StageContext, part: TrainingPart = WHOLE) -> None:
        """Write into the stage's folder, by its schedule.

        Args:
            context: Of the stage.
            part: Where the steps of this trainer stand among those of the stage.
        """
        self._part = part
        self._checkpoints = Checkpoints.of(context)
        self._ranks = Ranks(process_rank(), num_processes(), context.device)
        self._is_due = False
        self._started = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a save where one is due; not after the last step, whose result is the artifact."""
        step = self._part.first_step + state.global_step
        due = state.global_step < state.max_steps and self._checkpoints.is_due(step, self._ranks)
        if due:
            self._is_due = control.should_save = True
        self._started = time.monotonic()
        return control

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A validation comes before the save, and is no part of its time."""
        self._started = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over what the trainer has just saved, if it was asked to for this."""
        if not self._is_due:
            return
        self._is_due = False
        self._take(args, state)

    def write_now(self, trainer: Any) -> None:
        """Have the trainer save between two steps, and take that. On one process only."""
        self._started = time.monotonic()
        trainer._save_checkpoint(trainer.model, trial=None)  # it has no public way to save when nothing asks for it
        self._take(trainer.args, trainer.state)

    def _take(self, args: TrainingArguments, state: TrainerState) -> None:
        current = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None

        def save(folder: Path) -> None:
            _add_files(current, folder / _CURRENT)
            if best is not None and best != current:
                _add_files(best, folder / _BEST)
            if self._part.finished is not None and self._ranks.is_main:
                _add_files(self._part.finished, folder / FINISHED)

        self._checkpoints.write(self._part.first_step + state.global_step, save, self._ranks, started=self._started)


def write_finished(context: StageContext, step: int, finished: Path) -> None:
    """Keep what a training made that others of the stage follow; all ranks call it.

    Args:
        context: Of the stage.
        step: Steps of the stage that are done.
        finished: What this training and those before it made; only the main rank's is looked at.
    """
    ranks = Ranks(process_rank(), num_processes(), context.device)

    def save(folder: Path) -> None:
        if ranks.is_main:
            _add_files(finished, folder / FINISHED)

    Checkpoints.of(context).write(step, save, ranks)


def restore_finished(context: StageContext, folder: Path) -> int:
    """Lay what earlier trainings of the stage made into a folder.

    Returns:
        Steps of the stage that are done.
    """
    found = Checkpoints.of(context).latest()
    if found is None:
        return 0
    _add_files(found.path / FINISHED, folder)
    return found.step


def restore_checkpoint(context: StageContext, part: TrainingPart = WHOLE) -> str | None:
    """Lay the newest checkpoint where a trainer looks for it.

    Returns:
        For `Trainer.train(resume_from_checkpoint=...)`; None where there is no checkpoint of this training.

    Raises:
        ArtifactError: It holds more than tensors and plain values.
    """
    found = Checkpoints.of(context).latest()
    if found is None or found.step <= part.first_step:
        return None
    current = context.scratch_dir / f"checkpoint-{found.step - part.first_step}"
    shutil.copytree(found.path / _CURRENT, current)
    # The copy, for it is what is loaded.
    check_checkpoint(current, deepspeed_checkpoint_classes() if context.deepspeed is not None else ())
    state = json.loads((current / _STATE).read_text(encoding="utf-8"))
    best = current
    if (found.path / _BEST).is_dir():
        best = context.scratch_dir / f"checkpoint-{state['best_global_step']}"
        shutil.copytree(found.path / _BEST, best)
    if state["best_model_checkpoint"] is not None:  # a path of the process that wrote it
        state["best_model_checkpoint"] = str(best)
        (current / _STATE).write_text(json.dumps(state), encoding="utf-8")
    return str(current)


def _add_files(source: Path, target: Path) -> None:
    """Copy what is not there yet: ranks write the same name only where they have the same bytes."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_file() and path.name != _PICKLED and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
