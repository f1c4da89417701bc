"""The whole configuration: every section, and the relations between sections. Imports pydantic only."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from data.config import DataConfig
from data.strict import StrictModel
from stages.contract import STAGE_NAMES, StageName
from stages.evaluation.config import EvaluationConfig
from stages.models.config import ModelConfig
from stages.ppo.config import PPOConfig
from stages.preferences.config import PreferencesConfig
from stages.reward_model.config import RewardModelConfig
from stages.sft.config import SFTConfig


class TrackingConfig(StrictModel):
    """Weights & Biases. It only mirrors `metrics.jsonl` and never stops or slows training."""

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """`auto` is `online` where an API key is set (WANDB_API_KEY or `wandb login`), else `offline`."""

    project: str = Field(default="rlhf", min_length=1)
    """W&B project."""

    entity: str | None = None
    """W&B user or team."""


DISTRIBUTED_STAGES: tuple[StageName, ...] = ("sft", "reward_model", "ppo")
"""Stages that `accelerate` and `deepspeed` run on several processes."""


class CheckpointConfig(StrictModel):
    """When a training stage writes what `rlhf resume` goes on from. Both intervals count."""

    every_steps: int | None = Field(default=None, ge=1)
    """After each multiple of this many steps."""

    every_minutes: float | None = Field(default=10.0, gt=0)
    """After the first step that ends this long after the last checkpoint."""

    keep: int = Field(default=2, ge=1)
    """The newest ones that stay while the stage runs; when it is done, all go."""


class LaunchConfig(StrictModel):
    """Where and how a stage's process runs."""

    mode: Literal["inline", "process", "accelerate", "deepspeed"] = "process"
    """`inline` in the flow's process; `process` in one of its own; the others train SFT, reward model and PPO
    on `num_processes` processes (the remaining stages then run in one process of their own)."""

    num_processes: int = Field(default=1, ge=1)
    """Ranks of `accelerate` and `deepspeed`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is `cuda` where a GPU is visible, else `cpu`."""

    checkpoints: CheckpointConfig = CheckpointConfig()

    zero_stage: Literal[1, 2, 3] = 2
    """ZeRO stage of `deepspeed`. PPO's engines hold adapters only: there 3 is taken as 2."""


class PipelineConfig(StrictModel):
    """A run: what each stage does, on one base model."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Every random state of every stage derives from it; numpy takes 32 bits."""

    output_dir: str = Field(default="outputs", min_length=1)
    """Folder of runs and of the store that they share."""

    model: ModelConfig
    data: DataConfig
    sft: SFTConfig = SFTConfig()
    preferences: PreferencesConfig | None = None
    """Off by default: set it (`preferences: {}`) to collect preferences instead of reading them."""
    reward_model: RewardModelConfig | None = RewardModelConfig()
    """`null` ends the run after SFT."""
    ppo: PPOConfig | None = PPOConfig()
    """`null` ends the run after the reward model."""
    evaluation: EvaluationConfig | None = EvaluationConfig()
    """`null` leaves the evaluation out."""
    tracking: TrackingConfig = TrackingConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _relations(self) -> Self:
        data = self.data
        if data.demonstrations is None and data.preferences is None:
            raise ValueError("data: neither `demonstrations` nor `preferences` is given; SFT needs one of the two")
        if self.reward_model is not None and data.preferences is None and self.preferences is None:
            raise ValueError(
                "reward_model: there are no preferences to train on; give `data.preferences`, switch on the "
                "stage that makes them (`preferences: {}`), or set `reward_model: null`"
            )
        if data.preferences is not None and self.preferences is not None:
            raise ValueError(
                "preferences: both `data.preferences` and the `preferences` stage would feed the reward model; "
                "drop one of the two"
            )
        if self.ppo is not None and self.reward_model is None:
            raise ValueError("ppo: needs the reward model that `reward_model: null` switches off; set `ppo: null`")
        if self.evaluation is not None and self.ppo is None:
            raise ValueError(
                "evaluation: compares PPO with SFT, but `ppo: null` switches PPO off; set `evaluation: null`"
            )
        if self.launch.num_processes > 1 and self.launch.mode in ("inline", "process"):
            raise ValueError(
                f"launch.num_processes={self.launch.num_processes} needs `launch.mode: accelerate` or "
                f"`deepspeed`, not `{self.launch.mode}`"
            )
        for name, section in (("sft", self.sft), ("reward_model", self.reward_model)):
            if section is not None:
                self._check_accumulation(f"{name}.batch_size", section.batch_size, name, section.microbatch_size)
        if self.ppo is not None:
            self._check_accumulation("ppo.minibatch_size", self.ppo.minibatch_size, "ppo", self.ppo.microbatch_size)
        return self

    @model_validator(mode="after")
    def _reward_model_base(self) -> Self:
        if self.own_reward_base == self.model:
            raise ValueError(
                "reward_model.model: it is the same as `model`, which would be loaded a second time; a base of its own "
                "has to differ: leave it out, and the reward model starts from SFT on the shared base"
            )
        if self.own_reward_base is not None and self.ppo is not None and self.ppo.critic_init == "reward_model":
            raise ValueError(
                "ppo.critic_init=reward_model, but `reward_model.model` gives the reward model another base, whose "
                "adapter and head fit no critic here; use `ppo.critic_init: zero` or `auto`"
            )
        return self

    @model_validator(mode="after")
    def _cached_trunk(self) -> Self:
        if self.ppo is not None and self.ppo.cache_trunk is True and self.model.tuning.layers is None:
            raise ValueError(
                "ppo.cache_trunk=true, but `model.tuning.layers` is not set: adapters on all blocks leave no trunk to "
                "cache; set `model.tuning.layers: {last: N}`, or `ppo.cache_trunk: auto`"
            )
        return self

    def _check_accumulation(self, key: str, size: int, stage: str, microbatch_size: int) -> None:
        ranks = self.launch.num_processes
        at_once = microbatch_size * ranks
        if size % at_once == 0:
            return
        below = max(size // at_once, 1) * at_once
        raise ValueError(
            f"{key}={size} is not divisible by {stage}.microbatch_size={microbatch_size} x "
            f"launch.num_processes={ranks} = {at_once}; use {key}={below} or {below + at_once}, "
            f"or another microbatch_size"
        )

    @property
    def own_reward_base(self) -> ModelConfig | None:
        """The reward model's base where it does not share the policy's."""
        return None if self.reward_model is None else self.reward_model.model

    def enabled_stages(self) -> tuple[StageName, ...]:
        """The stages of this run, in their order."""
        off = {name for name in ("preferences", "reward_model", "ppo", "evaluation") if getattr(self, name) is None}
        return tuple(name for name in STAGE_NAMES if name not in off)

    def output_path(self) -> Path:
        """The folder of runs, absolute."""
        return Path(self.output_dir).expanduser().resolve()
