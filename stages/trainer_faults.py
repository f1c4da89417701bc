"""Training by one of Hugging Face's trainers that ends clearly where it fails, with its last good state kept.

A gradient that is not finite is found before the optimizer sees it: one such step makes every weight NaN, and the loss
tells it one step too late. Where a step fails before its optimizer step (such a gradient, memory that runs out), the
weights are still those of the step before, and are written as a checkpoint of that step.
"""

import random
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.errors import StageError
from stages.accelerator import num_processes
from stages.contract import StageContext
from stages.kept import tell_kept
from stages.learning import LearningConfig
from stages.memory_errors import is_memory_error, memory_error_text
from stages.models.config import ModelConfig
from stages.trainer_checkpoints import CheckpointCallback, restore_checkpoint
from stages.training_part import WHOLE, TrainingPart


def run_trainer(
    trainer: Any,
    stage: str,
    config: LearningConfig,
    model: ModelConfig,
    context: StageContext,
    part: TrainingPart = WHOLE,
) -> None:
    """Train from the newest checkpoint, if there is one, to the end.

    Args:
        trainer: One of Hugging Face's.
        stage: Name of the stage, for messages.
        config: Its learning settings.
        model: The model that it trains.
        context: Where checkpoints are.
        part: Which training of the stage this is, where there are several.

    Raises:
        StageError: A gradient was not finite, the loss was none, or memory ran out; the message says where the state
            before that is.
    """
    watch, checkpoints = FaultCallback(stage, config, trainer.model), CheckpointCallback(context, part)
    trainer.add_callback(watch)
    trainer.add_callback(checkpoints)
    try:
        with context.interruption.deferred():
            trainer.train(resume_from_checkpoint=restore_checkpoint(context, part))
    except Exception as error:  # of whatever kind: what was trained is kept
        message = str(error) if isinstance(error, StageError) else None
        if is_memory_error(error):
            sections = config.model_dump(mode="json"), model.model_dump(mode="json")
            message = memory_error_text(error, stage, "training", *sections, num_processes())
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the memory
        # On several ranks the others may be waiting for this one, so that nothing can be written together.
        if watch.is_whole and trainer.state.global_step > 0 and num_processes() == 1:
            watch.restore_random_states()
            checkpoints.write_now(trainer)
        if message is None:
            raise
        raise StageError(f"{message}. {tell_kept(context)}") from error


class FaultCallback(TrainerCallback):  # type: ignore[misc]
    """Refuses gradients that are not finite, and knows when the weights are those of a whole step."""

    def __init__(self, stage: str, config: LearningConfig, model: torch.nn.Module) -> None:
        """Watch the trainable parameters of a model."""
        self._stage = stage
        self._learning_rate = config.learning_rate
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.is_whole = False
        """Whether a step is under way that has not touched the weights yet."""
        self._restore: list[Callable[[], object]] = []

    def restore_random_states(self) -> None:
        """Put them back to the end of the last step: a checkpoint holds those."""
        for restore in self._restore:
            restore()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step may begin."""
        self._remember()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The passes forward and backward come."""
        self.is_whole = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients.

        Raises:
            StageError: One is not finite.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        # With float16 the scaler skips such steps and lowers its scale.
        if gradients and not args.fp16 and not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            raise StageError(
                f"{self._stage}: step {state.global_step + 1}: the gradient is not finite; the weights were left as "
                f"they were. Lower `{self._stage}.learning_rate` (now {self._learning_rate:g}), train in `model.dtype: "
                f"float32`, or look for an example that is out of the ordinary"
            )
        self.is_whole = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What comes next, validation for one, is no step."""
        self._remember()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint would be written after this, with these random states."""
        self._remember()

    def _remember(self) -> None:
        python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._restore = [
            lambda: random.setstate(python),
            lambda: np.random.set_state(numpy),
            lambda: torch.set_rng_state(cpu),
        ]
        if torch.cuda.is_available():
            cuda = torch.cuda.get_rng_state_all()
            self._restore.append(lambda: torch.cuda.set_rng_state_all(cuda))
