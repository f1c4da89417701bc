"""The PPO stage: puts four roles on one base, runs the trainer, saves the policy's adapter."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.chat import drop_long, encode_prompt
from data.errors import DataError, StageError
from data.schema import Prompt, read_split
from stages.contract import Artifact, StageContext, StageOutput
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.own_base import read_own_base
from stages.models.reward_loading import REWARD_ROLE, check_reward_model, load_reward
from stages.models.scalar_head import ScoreNormalization, ValueHead
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer, save_tokenizer
from stages.models.tuning import check_adapter, save_adapter, score_weight
from stages.ppo.config import PPOConfig
from stages.ppo.experience import PPOModels
from stages.ppo.trainer import PPOTrainer
from stages.rollouts.episodes import make_episode
from stages.rollouts.factory import build_engine
from stages.seeds import batch_rows

logger = logging.getLogger(__name__)


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
        StageError: Training went wrong; the message says how.
    """
    base = resolve_base(model, context.config_dir)
    policy_folder, reward_folder = inputs["policy"].path, inputs["reward_model"].path
    check_adapter(policy_folder, model, config_dir=context.config_dir)
    check_reward_model(reward_folder, model, config_dir=context.config_dir)
    tokenizer = load_tokenizer(policy_folder, model, context.config_dir)
    prompts, records, dropped = _prompts(config, inputs["dataset"], tokenizer)
    logger.info(
        "%d prompts (%d dropped as too long), %d steps of %d episodes, engine %s",
        len(prompts), dropped, config.steps, config.batch_size, config.rollout.engine,
    )  # fmt: skip

    shared_base = SharedBase(load_causal_lm(base, model, context.device), model)
    shared_base.add_adapter("reference", policy_folder, trainable=False)
    shared_base.copy_adapter("reference", "policy", trainable=True)
    reward = load_reward(
        reward_folder,
        model,
        shared_base,
        pad_token_id=tokenizer.pad_token_id,
        batch_size=config.microbatch_size,
        device=context.device,
        config_dir=context.config_dir,
    )
    value_head, critic_start = _start_critic(shared_base, reward_folder)
    if config.gradient_checkpointing:
        shared_base.enable_gradient_checkpointing()
    pad_token_id = tokenizer.pad_token_id
    models = PPOModels(
        shared_base=shared_base,
        value_head=value_head.to(shared_base.device),
        pad_token_id=pad_token_id,
    )
    engine = build_engine(
        config.rollout,
        model,
        shared_base,
        base=base,
        pad_token_id=pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        batch_size=config.batch_size,
        max_prompt_tokens=config.max_prompt_tokens,
        config_dir=context.config_dir,
        scratch_dir=context.scratch_dir,
        seed=context.seed,
    )
    try:
        engine.load_policy("policy")
        trainer = PPOTrainer(
            config=config,
            models=models,
            rollout_engine=engine,
            reward_function=reward,
            to_episode=lambda rollout: make_episode(tokenizer, records[rollout.prompt_ids], rollout),
            correct_rollouts=config.rollout.engine != "hf",
            seed=context.seed,
        )
        metrics = _train(config, trainer, prompts, context)
    finally:
        engine.close()
    save_adapter(shared_base.peft_model, "policy", context.payload_dir, base_spec=model.base)
    save_tokenizer(tokenizer, context.payload_dir)
    metrics |= {"data/prompts": float(len(prompts)), "data/dropped": float(dropped)}
    return StageOutput(
        metrics,
        notes={
            "critic_initialisation": critic_start,
            "bad_steps": trainer.num_bad_steps,
        },
    )


def _start_critic(shared_base: SharedBase, reward_folder: Path) -> tuple[ValueHead, str]:
    """Add the critic's adapter; returns its head, and in words what the two start from.

    An adapter and a head of another base fit nothing here: the critic then starts from SFT, with values of 0.
    """
    if read_own_base(reward_folder) is None:
        shared_base.copy_adapter(REWARD_ROLE, "critic", trainable=True)
        head = ValueHead(score_weight(reward_folder), ScoreNormalization.load(reward_folder))
        return head, "reward model, with its normalisation folded into the value head"
    shared_base.copy_adapter("reference", "critic", trainable=True)
    head = ValueHead(torch.zeros(1, shared_base.hidden_size), ScoreNormalization())
    return head, "SFT adapter with a value head of zeros: the reward model has another base"


def _train(
    config: PPOConfig, trainer: PPOTrainer, prompts: list[tuple[int, ...]], context: StageContext
) -> dict[str, float]:
    """All steps; returns the metrics of the last one."""
    metrics: dict[str, float] = {}
    for step in range(config.steps):
        rows = batch_rows(len(prompts), config.batch_size, step, seed=context.seed)
        metrics = trainer.step([prompts[row] for row in rows])
        context.metrics.write(step + 1, metrics)
        context.report_progress(
            step + 1,
            config.steps,
            f"score {metrics['objective/scores']:+.2f}, KL {metrics['objective/kl']:.2f}",
        )
    if trainer.num_bad_steps == trainer.num_updates:
        raise StageError("ppo: every update was skipped as not finite; lower `ppo.learning_rate`")
    return metrics


def _prompts(
    config: PPOConfig, dataset: Artifact, tokenizer: Any
) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], Prompt], int]:
    """Training prompts as ids, the record's prompt of each, and how many were too long."""
    records = read_split(dataset.path, "prompts", "train")
    encoded = [tuple(encode_prompt(tokenizer, record.prompt)) for record in records]
    kept, dropped = drop_long(encoded, config.max_prompt_tokens)
    if not kept:
        raise DataError(
            f"ppo: all {dropped} prompts are longer than ppo.max_prompt_tokens={config.max_prompt_tokens}; at least "
            f"one has to fit: raise `ppo.max_prompt_tokens`"
        )
    return [encoded[row] for row in kept], {encoded[row]: records[row].prompt for row in kept}, dropped
