"""The whole configuration: every section, and the relations between sections. Imports pydantic only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from data.config import FORMATS_BY_KIND, DataConfig, source_parts, wrong_format
from data.strict import Contradiction, PathText, Section, StrictModel, Text, differs
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

    project: Text = "rlhf"
    """W&B project."""

    entity: Text | None = None
    """W&B user or team."""


DISTRIBUTED_STAGES: tuple[StageName, ...] = ("sft", "reward_model", "ppo")
"""Stages that `accelerate` and `deepspeed` run on several processes."""


class CheckpointConfig(Section):
    """When a training stage writes what `rlhf resume` goes on from. Both intervals count."""

    every_steps: int | None = Field(default=None, ge=1)
    """After each multiple of this many steps."""

    every_minutes: float | None = Field(default=10.0, gt=0)
    """After the first step that ends this long after the last checkpoint."""

    keep: int = Field(default=2, ge=1)
    """The newest ones that stay while the stage runs; when it is done, all go."""

    def contradictions(self) -> Iterator[Contradiction]:
        """A schedule without a date."""
        if self.every_steps is None and self.every_minutes is None:
            yield Contradiction(
                ("every_steps", "every_minutes"),
                "every_steps and every_minutes are both null: no checkpoint would be written, and a killed run would "
                "lose all its training; set one of the two",
            )


class LaunchConfig(Section):
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
    """ZeRO stage of `deepspeed`. 3 is refused: it splits the frozen base over the ranks, too, and one of them saves and
    measures the adapter."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Settings of a launcher that does not run."""
        if self.num_processes > 1 and self.mode in ("inline", "process"):
            yield Contradiction(
                ("num_processes", "mode"),
                f"num_processes={self.num_processes} needs `launch.mode: accelerate` or `deepspeed`, not `{self.mode}`",
            )
        if self.zero_stage == 3:
            yield Contradiction(
                ("zero_stage",),
                "zero_stage=3 would split the base over the ranks, but one rank saves and measures the adapter "
                "that was trained on it, and the reward model fails there; use `launch.zero_stage: 2`",
            )
        elif differs(self, "zero_stage") and self.mode != "deepspeed":
            yield Contradiction(
                ("zero_stage", "mode"),
                f"zero_stage={self.zero_stage} is a setting of DeepSpeed, but mode={self.mode}; remove it, or use "
                f"`launch.mode: deepspeed`",
            )


class PipelineConfig(Section):
    """A run: what each stage does, on one base model."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Every random state of every stage derives from it; numpy takes 32 bits."""

    output_dir: PathText = "outputs"
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

    def contradictions(self) -> Iterator[Contradiction]:
        """Those between sections."""
        yield from self._stages_and_sources()
        yield from self._batches()
        yield from self._reward_model_base()
        yield from self._models()

    def _stages_and_sources(self) -> Iterator[Contradiction]:
        data = self.data
        if data.demonstrations is None and data.preferences is None:
            yield Contradiction(
                ("data.demonstrations", "data.preferences"),
                "data: neither `demonstrations` nor `preferences` is given; SFT needs one of the two",
            )
        feeders = ("data.preferences", "preferences")
        trains_one = self.reward_model is not None and self.reward_model.pretrained is None
        if trains_one and data.preferences is None and self.preferences is None:
            yield Contradiction(
                ("reward_model", *feeders),
                "reward_model: there are no preferences to train on; give `data.preferences`, switch on the "
                "stage that makes them (`preferences: {}`), or set `reward_model: null`",
            )
        if data.preferences is not None and self.preferences is not None:
            yield Contradiction(
                feeders,
                "preferences: both `data.preferences` and the `preferences` stage would feed the reward model; "
                "drop one of the two",
            )
        if self.ppo is not None and self.reward_model is None:
            yield Contradiction(
                ("ppo", "reward_model"),
                "ppo: needs the reward model that `reward_model: null` switches off; set `ppo: null`",
            )
        if self.evaluation is not None and self.ppo is None:
            yield Contradiction(
                ("evaluation", "ppo"),
                "evaluation: compares PPO with SFT, but `ppo: null` switches PPO off; set `evaluation: null`",
            )
        for wanted, key, part in source_parts(data):
            if part.format not in ("auto", *FORMATS_BY_KIND[wanted]):
                yield Contradiction((f"{key}.format",), wrong_format(key, part.format, wanted))
        kind = "preferences" if data.demonstrations is None else "demonstrations"
        source = data.demonstrations or data.preferences
        if source is not None and not source.holds_out and self.sft.eval_every_steps is not None:
            yield Contradiction(
                ("sft.eval_every_steps", "data"),
                f"sft.eval_every_steps={self.sft.eval_every_steps}, but data.{kind}.held_out=0 leaves nothing to "
                f"validate on; hold a share out, or remove sft.eval_every_steps",
            )

    def _batches(self) -> Iterator[Contradiction]:
        yield from self._accumulation("sft", "batch_size", self.sft.batch_size, self.sft.microbatch_size)
        if (reward := self.reward_model) is not None:
            yield from self._accumulation("reward_model", "batch_size", reward.batch_size, reward.microbatch_size)
        if (ppo := self.ppo) is None:
            return
        if ppo.minibatch_size % ppo.microbatch_size == 0:  # else PPO's own section says it
            yield from self._accumulation("ppo", "minibatch_size", ppo.minibatch_size, ppo.microbatch_size)
        if ppo.share_first_pass is True and self.launch.num_processes > 1:
            yield Contradiction(
                ("ppo.share_first_pass", "launch.num_processes"),
                f"ppo.share_first_pass=true, but launch.num_processes={self.launch.num_processes}: a process updates "
                f"episodes of others, whose first pass it has not made; use `ppo.share_first_pass: auto`, or one "
                f"process",
            )

    def _accumulation(self, stage: str, name: str, size: int, microbatch_size: int) -> Iterator[Contradiction]:
        ranks = self.launch.num_processes
        at_once = microbatch_size * ranks
        if size % at_once == 0:
            return
        key = f"{stage}.{name}"
        below = max(size // at_once, 1) * at_once
        beside = ""
        if name == "minibatch_size" and self.ppo is not None:
            whole = self.ppo.batch_size
            if whole % below and whole % (below + at_once):
                beside = f" (and a ppo.batch_size that it divides, not {whole})"
        yield Contradiction(
            (key, f"{stage}.microbatch_size", "launch.num_processes", *(["ppo.batch_size"] if beside else [])),
            f"{key}={size} is not divisible by {stage}.microbatch_size={microbatch_size} x "
            f"launch.num_processes={ranks} = {at_once}; use {key}={below} or {below + at_once}{beside}, "
            f"or another microbatch_size",
        )

    def _reward_model_base(self) -> Iterator[Contradiction]:
        own = self.own_reward_base
        if own is not None and own == self.model:
            yield Contradiction(
                ("reward_model.model", "model"),
                "reward_model.model: it is the same as `model`, which would be loaded a second time; a base of its own "
                "has to differ: leave it out, and the reward model starts from SFT on the shared base",
            )
        if own is not None and self.ppo is not None and self.ppo.critic_init == "reward_model":
            yield Contradiction(
                ("ppo.critic_init", self.own_reward_key),
                f"ppo.critic_init=reward_model, but `{self.own_reward_key}` gives the reward model another base, whose "
                f"adapter and head fit no critic here; use `ppo.critic_init: zero` or `auto`",
            )

    def _models(self) -> Iterator[Contradiction]:
        if self.ppo is not None and self.ppo.cache_trunk is True and self.model.tuning.layers is None:
            yield Contradiction(
                ("ppo.cache_trunk", "model.tuning.layers"),
                "ppo.cache_trunk=true, but `model.tuning.layers` is not set: adapters on all blocks leave no trunk to "
                "cache; set `model.tuning.layers: {last: N}`, or `ppo.cache_trunk: auto`",
            )
        for name, model in (("model", self.model), (self.own_reward_key, self.own_reward_base)):
            if model is not None and model.attention == "flash_attention_2" and self.launch.device == "cpu":
                yield Contradiction(
                    (f"{name}.attention", "launch.device"),
                    f"{name}.attention=flash_attention_2 needs a GPU, but launch.device=cpu; use `{name}.attention: "
                    f"auto`, or `launch.device: cuda`",
                )
        for name, section in (("preferences", self.preferences), ("ppo", self.ppo), ("evaluation", self.evaluation)):
            chooses = section is not None and differs(section.rollout.vllm, "base_weights")
            if chooses and self.model.quantization != "nf4":
                yield Contradiction(
                    (f"{name}.rollout.vllm.base_weights", "model.quantization", "model.tuning.method"),
                    f"{name}.rollout.vllm.base_weights=original chooses between two sets of weights that only NF4 has, "
                    f"but model.quantization={self.model.quantization}; remove it, or use `model.quantization: nf4`",
                )

    @property
    def own_reward_key(self) -> str:
        """The section that names that base, for messages."""
        is_ready = self.reward_model is not None and self.reward_model.pretrained is not None
        return "reward_model.pretrained" if is_ready else "reward_model.model"

    @property
    def own_reward_base(self) -> ModelConfig | None:
        """The reward model's base where it does not share the policy's."""
        return None if self.reward_model is None else self.reward_model.own_base

    def enabled_stages(self) -> tuple[StageName, ...]:
        """The stages of this run, in their order."""
        off = {name for name in ("preferences", "reward_model", "ppo", "evaluation") if getattr(self, name) is None}
        return tuple(name for name in STAGE_NAMES if name not in off)

    def output_path(self) -> Path:
        """The folder of runs, absolute."""
        return Path(self.output_dir).expanduser().resolve()
