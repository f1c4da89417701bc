"""What several processes mean to a stage: ranks, and the arguments that Hugging Face's trainers share.

accelerate and DeepSpeed are driven through `TrainingArguments` from here and nowhere else.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.errors import StageError
from stages.contract import StageContext
from stages.deepspeed_ops import load_deepspeed_operators
from stages.learner import Learner, ReplicatedLearner
from stages.learning import LearningConfig
from stages.models.config import ModelConfig
from stages.ranks import Ranks
from stages.training_part import WHOLE, TrainingPart


def num_processes() -> int:
    """Ranks of this stage, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this rank writes."""
    return process_rank() == 0


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Join the processes of this stage, for a loop that is not a Hugging Face trainer's.

    Args:
        device: `cpu` (gloo) or `cuda` (NCCL, one GPU a rank).

    Yields:
        This process among them.
    """
    if num_processes() == 1:
        yield Ranks(device=device)
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if dist.is_initialized():  # vLLM in this process takes the group down with itself
            dist.destroy_process_group()


def make_learner(
    parameters: Sequence[nn.Parameter],
    *,
    learning_rate: float,
    adam_epsilon: float,
    max_grad_norm: float,
    ranks: Ranks,
    deepspeed: dict[str, Any] | None,
) -> Learner:
    """AdamW on a group of parameters: replicated, or sharded where the stage runs under DeepSpeed.

    Args:
        parameters: In the same order on all ranks, with equal values.
        learning_rate: Before any factor.
        adam_epsilon: Of AdamW.
        max_grad_norm: The summed gradient is clipped to this norm.
        ranks: Processes of the stage.
        deepspeed: DeepSpeed's settings, from the context.
    """
    settings = {
        "learning_rate": learning_rate,
        "adam_epsilon": adam_epsilon,
        "max_grad_norm": max_grad_norm,
        "ranks": ranks,
    }
    if deepspeed is None:
        return ReplicatedLearner(parameters, **settings)  # type: ignore[arg-type]
    return DeepSpeedLearner(parameters, **settings, zero_stage=int(deepspeed["zero_optimization"]["stage"]))  # type: ignore[arg-type]


class DeepSpeedLearner:
    """Gradients and optimizer state are sharded over the ranks by ZeRO.

    The engine holds the adapters alone, whose base is frozen, so there are no large parameters to shard: ZeRO-3 is
    taken as ZeRO-2.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        adam_epsilon: float,
        max_grad_norm: float,
        ranks: Ranks,
        zero_stage: int,
    ) -> None:
        """Make the engine; see `make_learner`."""
        import deepspeed

        load_deepspeed_operators()
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self._num_ranks = ranks.size
        self._optimizer = torch.optim.AdamW(self._parameters, lr=learning_rate, eps=adam_epsilon, weight_decay=0.0)
        self._engine: Any = deepspeed.initialize(
            model=_ParameterHolder(self._parameters),
            model_parameters=self._parameters,
            optimizer=self._optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": max_grad_norm,
                "zero_optimization": {"stage": min(zero_stage, 2)},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )[0]

    def backward(self, loss: Tensor) -> None:
        """Add a microbatch's gradients; ZeRO takes the mean over the ranks, so that the sum is asked for."""
        self._engine.set_gradient_accumulation_boundary(False)
        self._engine.backward(loss * self._num_ranks)
        self._engine.step()

    def finish(self, *, apply: bool) -> float:
        """Close the accumulation with a term that adds nothing, or that makes ZeRO skip the step."""
        self._engine.set_gradient_accumulation_boundary(True)
        nothing = torch.stack([parameter.sum() for parameter in self._parameters]).sum()
        self._engine.backward(nothing * (0.0 if apply else math.nan))
        self._engine.step()
        return math.nan if self._engine.optimizer.overflow else float(self._engine.get_global_grad_norm())

    def set_learning_rate_factor(self, factor: float) -> None:
        """Scale the learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * factor

    def state_dict(self) -> dict[str, Any]:
        """This rank's shard: AdamW's state and the float32 partition."""
        state = self._engine.optimizer.state_dict()
        return {name: state[name] for name in ("base_optimizer_state", "single_partition_of_fp32_groups")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over this rank's saved shard."""
        zero = self._engine.optimizer
        zero.optimizer.load_state_dict(state["base_optimizer_state"])
        saved = state["single_partition_of_fp32_groups"]
        with torch.no_grad():
            for partition, values in zip(zero.single_partition_of_fp32_groups, saved, strict=True):
                # The last ranks' partitions end in padding, which is not saved.
                partition[: values.numel()].copy_(values)


class _ParameterHolder(nn.Module):
    """What DeepSpeed takes for the model."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterList(parameters)


def deepspeed_checkpoint_classes() -> tuple[type, ...]:
    """The data classes that DeepSpeed's ZeRO checkpoints name; they hold numbers and run nothing when restored."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return LossScaler, ZeroStageEnum, fragment_address


def num_optimizer_steps(config: LearningConfig, num_examples: int) -> int:
    """Optimizer steps of a training run; the last, smaller batch of an epoch counts, and a part of a step is one."""
    per_epoch = max(-(-num_examples // config.batch_size), 1)
    steps = max(math.ceil(per_epoch * config.epochs), 1)  # as transformers rounds
    return min(steps, config.max_steps) if config.max_steps is not None else steps


def shared_training_arguments(
    config: LearningConfig, model: ModelConfig, context: StageContext, *, num_examples: int
) -> dict[str, Any]:
    """Arguments of `TrainingArguments` that SFT and reward model share.

    The global batch is the same for any number of processes: accumulation makes up for it.
    """
    if context.deepspeed is not None:
        load_deepspeed_operators()
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

    def __init__(self, context: StageContext, part: TrainingPart = WHOLE) -> None:
        """Keep the writer.

        Args:
            context: Of the stage.
            part: Where the steps of this trainer stand among those of the stage.
        """
        self._context = context
        self._part = part

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
            self._context.metrics.write(self._part.first_step + state.global_step, row)
        what = f"loss {loss:.3f}" if loss is not None else "validation"
        self._context.report_progress(
            self._part.first_step + state.global_step, self._part.count * state.max_steps, what
        )


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
