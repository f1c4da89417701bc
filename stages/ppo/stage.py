"""The PPO stage: puts the roles on one base, runs the trainer, saves the policy's adapter."""

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.chat import drop_long, encode_episode, encode_prompt
from data.errors import ConfigError, DataError, ModelError, StageError
from data.schema import PromptRecord, read_split
from rewards.composite import CompositeReward
from rewards.contract import EnsembleRewardFunction, Episode
from rewards.references import check_references
from rewards.stored import cut_steps
from stages.accelerator import make_learner, process_group
from stages.checkpoint import Checkpoints
from stages.contract import Artifact, StageContext, StageOutput
from stages.kept import tell_kept
from stages.learner import Learner
from stages.memory_errors import is_memory_error, memory_error_text
from stages.models.adapters import check_adapter, check_reward_model
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.own_base import is_apart
from stages.models.reward_loading import REWARD_ROLE, as_reward, load_score_model
from stages.models.scalar_head import ScoreNormalization, ValueHead
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer, save_tokenizer
from stages.models.tuning import save_adapter, score_weight
from stages.positions import check_prompts
from stages.ppo.config import PPOConfig
from stages.ppo.guard import BadStepCounter
from stages.ppo.passes import PPOModels
from stages.ppo.rewards import build_rewards
from stages.ppo.state import Progress, StepStart, load_state, save_state
from stages.ppo.trainer import PPOTrainer
from stages.ppo.update import Demonstration, Update
from stages.ranks import Ranks
from stages.rollouts.contract import Rollout, RolloutEngine
from stages.rollouts.episodes import make_episode
from stages.rollouts.factory import build_engine, serves_trainer_weights
from stages.seeds import batch_rows

logger = logging.getLogger(__name__)

ROLLOUTS = "rollouts"
"""Folder in that of the stage: what was sampled and how it was judged, a Parquet file a step."""


def run(config: PPOConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageOutput:
    """Train the policy against the reward model, held near the SFT policy by the KL penalty.

    Args:
        config: Settings of PPO.
        model: Base and adapter.
        inputs: `dataset`, `policy` (SFT: start and reference) and `reward_model`.
        context: Where to write.

    Returns:
        The metrics of the last step.

    Raises:
        DataError: No prompt is short enough.
        StageError: Training went wrong; the message says how, and where the state before that step is kept.
    """
    base = resolve_base(model, context.config_dir)
    check_adapter(inputs["policy"].path, model, config_dir=context.config_dir)
    check_reward_model(inputs["reward_model"].path, model, config_dir=context.config_dir)
    tokenizer = load_tokenizer(inputs["policy"].path, model, context.config_dir)
    prompts, records, dropped = _prompts(config, inputs["dataset"], tokenizer)
    demonstrations = _demonstrations(config, inputs["dataset"], tokenizer)
    logger.info(
        "%d prompts (%d dropped as too long), %d steps of %d episodes, engine %s, estimator %s",
        len(prompts), dropped, config.steps, config.batch_size, config.rollout.engine, config.advantage_estimator,
    )  # fmt: skip
    with process_group(context.device) as ranks:
        models, reward, critic_start = _load_roles(config, model, base, inputs, tokenizer.pad_token_id, context)
        check_prompts("ppo", prompts, config.rollout.max_new_tokens, models.shared_base.max_positions)
        engine = build_engine(
            config.rollout,
            model,
            models.shared_base,
            base=base,
            tokenizer=tokenizer,
            prompts=prompts,
            batch_size=config.generate_batch_size or config.batch_size,
            max_prompt_tokens=config.max_prompt_tokens,
            context=context,
            ranks=ranks,
        )
        try:
            trainer, learners = _make_trainer(
                config,
                models,
                reward,
                engine,
                records,
                tokenizer,
                demonstrations,
                ranks,
                context,
                same_weights=serves_trainer_weights(config.rollout, model),
            )
            progress = _go_on(trainer, learners, context)
            engine.load_policy("policy")
            with context.interruption.deferred():
                metrics = _train(trainer, learners, prompts, model, progress, context)
        finally:
            engine.close()
        if not ranks.is_main:
            return StageOutput({})
    save_adapter(models.shared_base.peft_model, "policy", context.payload_dir, base_spec=model.base)
    save_tokenizer(tokenizer, context.payload_dir)
    metrics |= {"data/prompts": float(len(prompts)), "data/dropped": float(dropped)}
    notes: dict[str, Any] = {"bad_steps": trainer.bad_steps.count, "critic_initialisation": critic_start}
    if trainer.rollouts_dir is not None:  # of the run that trained: another one may take the artifact from the store
        notes["rollouts"] = f"{context.stage_dir.parent.name}/{context.stage_dir.name}/{ROLLOUTS}"
    return StageOutput(metrics, notes=notes)


def _load_roles(
    config: PPOConfig,
    model: ModelConfig,
    base: Path | str,
    inputs: Mapping[str, Artifact],
    pad_token_id: int,
    context: StageContext,
) -> tuple[PPOModels, CompositeReward, str]:
    """Policy, reference, reward model and, where the estimator needs one, the critic."""
    shared_base = SharedBase(load_causal_lm(base, model, context.device), model)
    shared_base.add_adapter("reference", inputs["policy"].path, trainable=False)
    shared_base.copy_adapter("reference", "policy", trainable=True)
    reward_folder = inputs["reward_model"].path

    def judge(folder: Path, role: str) -> EnsembleRewardFunction:
        return as_reward(
            load_score_model(
                folder,
                model,
                shared_base,
                pad_token_id=pad_token_id,
                batch_size=config.microbatch_size,
                device=context.device,
                config_dir=context.config_dir,
                role=role,
            )
        )

    reward = build_rewards(config, judge, reward_folder, context.config_dir, context.stage_dir / "judge_answers.sqlite")
    value_head, critic_start = _start_critic(config, shared_base, reward_folder)
    if value_head is not None:
        value_head = value_head.to(shared_base.device)
    _cache_trunk(config, model, shared_base)
    if config.compile_blocks:
        shared_base.compile_blocks()
    if config.gradient_checkpointing:
        shared_base.enable_gradient_checkpointing()
    return PPOModels(shared_base, value_head, pad_token_id), reward, critic_start


def _cache_trunk(config: PPOConfig, model: ModelConfig, shared_base: SharedBase) -> None:
    """Have the trunk computed once an episode, where it is asked for, or can be and is not refused."""
    if config.cache_trunk is False or (config.cache_trunk == "auto" and model.tuning.layers is None):
        return
    try:
        depth = shared_base.enable_trunk_cache()
    except ModelError as error:
        if config.cache_trunk is True:
            raise
        logger.info("the trunk is not cached: %s", error)
        return
    logger.info("hidden states below block %d are computed once an episode, for all roles and epochs", depth)


def _start_critic(config: PPOConfig, shared_base: SharedBase, reward_folder: Path) -> tuple[ValueHead | None, str]:
    """Add the critic's adapter; returns its head, and in words what the two start from."""
    if not config.has_critic:
        return None, f"none: {config.advantage_estimator} has no critic"
    is_shared = not is_apart(reward_folder)
    if config.critic_init == "reward_model" and not is_shared:
        raise ConfigError(
            "ppo.critic_init=reward_model, but the reward model has another base, whose adapter and head fit nothing "
            "here; use `ppo.critic_init: zero` or `auto`"
        )
    if is_shared and config.critic_init != "zero" and config.is_scored_by_reward_model:
        shared_base.copy_adapter(REWARD_ROLE, "critic", trainable=True)
        head = ValueHead.from_score_head(score_weight(reward_folder), ScoreNormalization.load(reward_folder))
        return head, "reward model, with its normalisation folded into the value head"
    shared_base.copy_adapter("reference", "critic", trainable=True)
    return ValueHead(shared_base.hidden_size), "SFT adapter, with a value head of zeros"


def _make_trainer(
    config: PPOConfig,
    models: PPOModels,
    reward: CompositeReward,
    engine: RolloutEngine,
    records: Mapping[tuple[int, ...], PromptRecord],
    tokenizer: Any,
    demonstrations: Sequence[Demonstration],
    ranks: Ranks,
    context: StageContext,
    *,
    same_weights: bool,
) -> tuple[PPOTrainer, dict[str, Learner]]:
    """The trainer and the learners of its trained roles."""

    def learner(role: str, learning_rate: float) -> Learner:
        head = models.value_head if role == "critic" else None
        return make_learner(
            [*models.shared_base.parameters(role), *([] if head is None else head.parameters())],
            learning_rate=learning_rate,
            adam_epsilon=config.adam_epsilon,
            max_grad_norm=config.max_grad_norm,
            ranks=ranks,
            deepspeed=context.deepspeed,
        )

    learners = {"policy": learner("policy", config.learning_rate)}
    if config.has_critic:
        learners["critic"] = learner("critic", config.critic_learning_rate or config.learning_rate)

    def to_episode(rollout: Rollout) -> Episode:
        record = records[rollout.prompt_ids]
        return make_episode(tokenizer, record.prompt, rollout, reference=record.reference)

    bad_steps = BadStepCounter(config.max_bad_steps)
    update = Update(
        config=config,
        models=models,
        policy=learners["policy"],
        critic=learners.get("critic"),
        ranks=ranks,
        bad_steps=bad_steps,
        demonstrations=demonstrations,
        seed=context.seed,
    )
    trainer = PPOTrainer(
        config=config,
        models=models,
        rollout_engine=engine,
        rewards=reward,
        to_episode=to_episode,
        update=update,
        bad_steps=bad_steps,
        ranks=ranks,
        seed=context.seed,
        same_weights=same_weights,
        rollouts_dir=_rollouts_dir(config, context, ranks),
    )
    return trainer, learners


def _rollouts_dir(config: PPOConfig, context: StageContext, ranks: Ranks) -> Path | None:
    """Where this rank keeps the rollouts; no part of the artifact, which is the policy alone."""
    return context.stage_dir / ROLLOUTS if config.keep_rollouts and ranks.is_main else None


def _go_on(trainer: PPOTrainer, learners: dict[str, Learner], context: StageContext) -> Progress:
    """Put the newest checkpoint, if there is one, into a trainer that is made already."""
    checkpoint = Checkpoints.of(context).latest()
    if trainer.rollouts_dir is not None:
        cut_steps(trainer.rollouts_dir, 0 if checkpoint is None else checkpoint.step)
    if checkpoint is None:
        return Progress()
    load_state(checkpoint.path, trainer, learners)
    logger.info("going on after step %d, from %s", checkpoint.step, checkpoint.path)
    return Progress.load(checkpoint.path)


def _train(
    trainer: PPOTrainer,
    learners: dict[str, Learner],
    prompts: Sequence[tuple[int, ...]],
    model: ModelConfig,
    progress: Progress,
    context: StageContext,
) -> dict[str, float]:
    """All steps that are left; returns the last known value of each metric."""
    config = trainer.config
    checkpoints = Checkpoints.of(context)

    def save(folder: Path) -> None:
        save_state(folder, trainer, learners, base_spec=model.base)
        if trainer.ranks.is_main:
            progress.save(folder)

    start = StepStart(trainer, learners)
    for step in range(trainer.num_steps, config.steps):
        rows = batch_rows(len(prompts), config.batch_size // config.responses_per_prompt, step, seed=context.seed)
        repeated = [prompts[row] for row in rows for _ in range(config.responses_per_prompt)]
        began = time.perf_counter()
        start.remember()
        seconds = time.perf_counter() - began
        with _state_kept(trainer, start, save, checkpoints, model, context):
            found = trainer.step(repeated) | {"time/remember_seconds": seconds}
        progress.see(found)
        context.metrics.write(step + 1, found)
        context.report_progress(step + 1, config.steps, _progress_text(found))
        if step + 1 < config.steps:
            checkpoints.write_if_due(step + 1, save, trainer.ranks)
    if progress.num_updates == 0:
        raise StageError("ppo: every update was skipped as not finite; lower `ppo.learning_rate`")
    return progress.metrics


@contextmanager
def _state_kept(
    trainer: PPOTrainer,
    start: StepStart,
    save: Callable[[Path], None],
    checkpoints: Checkpoints,
    model: ModelConfig,
    context: StageContext,
) -> Iterator[None]:
    """Where a step fails, write the state before it as a checkpoint, and say so.

    Raises:
        StageError: The step's own, with where its state is.
    """
    try:
        yield
    except Exception as error:  # of whatever kind: what was trained is kept
        message = str(error) if isinstance(error, StageError) else None
        if is_memory_error(error):
            sections = trainer.config.model_dump(mode="json"), model.model_dump(mode="json")
            message = memory_error_text(error, "ppo", trainer.clock.part, *sections, trainer.ranks.size)
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the memory
        # On several ranks only where all of them are here: those that wait for one another would wait for ever.
        if trainer.ranks.size == 1 or (isinstance(error, StageError) and trainer.clock.part != "sync"):
            start.restore()
            if trainer.num_steps > 0:
                checkpoints.write(trainer.num_steps, save, trainer.ranks)
        text = tell_kept(context)
        if message is not None:
            raise StageError(f"{message}. {text}") from error
        logger.error("%s", text)
        raise


def _progress_text(metrics: Mapping[str, float]) -> str:
    if "objective/scores" not in metrics:
        return "batch skipped"
    return f"score {metrics['objective/scores']:+.2f}, KL {metrics['objective/kl']:.2f}"


def _prompts(
    config: PPOConfig, dataset: Artifact, tokenizer: Any
) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], PromptRecord], int]:
    """Training prompts as ids, the record of each, and how many were too long."""
    records = read_split(dataset.path, "prompts", "train")
    encoded = [tuple(encode_prompt(tokenizer, record.prompt)) for record in records]
    kept, dropped = drop_long(encoded, config.max_prompt_tokens)
    if not kept:
        raise DataError(
            f"ppo: all {dropped} prompts are longer than ppo.max_prompt_tokens={config.max_prompt_tokens}; at least "
            f"one has to fit: raise `ppo.max_prompt_tokens`"
        )
    check_references(config.reward_components, [records[row] for row in kept])
    return [encoded[row] for row in kept], {encoded[row]: records[row] for row in kept}, dropped


def _demonstrations(config: PPOConfig, dataset: Artifact, tokenizer: Any) -> list[Demonstration]:
    """Demonstrations as ids, as short as the episodes; none where their loss has no weight."""
    if config.ptx_coef == 0:
        return []
    records = read_split(dataset.path, "demonstrations", "train")
    encoded = [encode_episode(tokenizer, record.prompt, record.response) for record in records]
    limit = config.max_prompt_tokens + config.rollout.max_new_tokens
    kept: list[Demonstration] = [
        (prompt, response) for prompt, response in encoded if len(prompt) + len(response) <= limit
    ]
    if not kept:
        raise DataError(
            f"ppo.ptx_coef={config.ptx_coef} needs demonstrations, but none of {len(records)} has at most {limit} "
            f"tokens (ppo.max_prompt_tokens + ppo.rollout.max_new_tokens); set `ppo.ptx_coef: 0` or raise one of the "
            f"two"
        )
    return kept
