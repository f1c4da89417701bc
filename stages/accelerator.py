"""What several processes mean to a stage: ranks, and the arguments that Hugging Face's trainers share.

accelerate and DeepSpeed are driven through `TrainingArguments` from here and nowhere else.
"""

import os
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.errors import StageError
from stages.contract import StageContext
from stages.learning import LearningConfig
from stages.models.config import ModelConfig


def num_processes() -> int:
    """Ranks of this stage, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this rank writes."""
    return int(os.environ.get("RANK", "0")) == 0


def num_optimizer_steps(config: LearningConfig, num_examples: int) -> int:
    """Optimizer steps of a training run; the last, smaller batch of an epoch counts."""
    per_epoch = max(-(-num_examples // config.batch_size), 1)
    steps = max(round(per_epoch * config.epochs), 1)
    return min(steps, config.max_steps) if config.max_steps is not None else steps


def shared_training_arguments(
    config: LearningConfig, model: ModelConfig, context: StageContext, *, num_examples: int
) -> dict[str, Any]:
    """Arguments of `TrainingArguments` that SFT and reward model share.

    The global batch is the same for any number of processes: accumulation makes up for it.
    """
    per_pass = config.microbatch_size * num_processes()
    return {
        "output_dir": str(context.scratch_dir),
        "per_device_train_batch_size": config.microbatch_size,
        "per_device_eval_batch_size": config.microbatch_size,
        "gradient_accumulation_steps": max(config.batch_size // per_pass, 1),
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": round(config.warmup_fraction * num_optimizer_steps(config, num_examples)),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.epochs,
        "max_steps": -1 if config.max_steps is None else config.max_steps,
        "seed": context.seed,
        "data_seed": context.seed,
        "bf16": model.dtype == "bfloat16",
        "fp16": model.dtype == "float16",
        "use_cpu": context.device == "cpu",
        "gradient_checkpointing": config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if config.gradient_checkpointing else None,
        "ddp_find_unused_parameters": False,
        "ddp_backend": "gloo" if context.device == "cpu" and num_processes() > 1 else None,
        "deepspeed": context.deepspeed,
        "dataloader_pin_memory": context.device == "cuda",
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would log a NaN loss as the mean of the losses before
        "disable_tqdm": True,
        "report_to": "none",
    }


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Writes what a Hugging Face trainer logs as rows of `metrics.jsonl`, under the names of this project."""

    def __init__(self, context: StageContext) -> None:
        """Keep the writer."""
        self._context = context

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one row and report progress.

        Raises:
            StageError: The training loss is not finite.
        """
        row = {
            _metric_name(key): value
            for key, value in (logs or {}).items()
            if isinstance(value, int | float) and not _is_bookkeeping(key)
        }
        loss = row.get("train/loss")
        if loss is not None and loss != loss:
            raise StageError(
                f"step {state.global_step}: the training loss is not a number; lower `learning_rate`, or train in "
                f"`model.dtype: float32`"
            )
        if row:
            self._context.metrics.write(state.global_step, row)
        what = f"loss {loss:.3f}" if loss is not None else "validation"
        self._context.report_progress(state.global_step, state.max_steps, what)


def _metric_name(key: str) -> str:
    if key.startswith("eval_"):
        return f"eval/{key.removeprefix('eval_')}"
    return f"train/{key}"


def _is_bookkeeping(key: str) -> bool:
    """Whether a logged key is about speed or totals, which the manifest has."""
    return key.startswith(("train_", "total_flos")) or key.endswith(
        ("_runtime", "_per_second", "epoch", "num_tokens", "num_input_tokens_seen")
    )


def train_in_float32(model: nn.Module) -> None:
    """Make trainable parameters float32 again: TRL casts them to bfloat16 on a quantised base.

    An Adam step of 1e-4 is lost in bfloat16 on weights above 0.05 (8 bits of mantissa).
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
