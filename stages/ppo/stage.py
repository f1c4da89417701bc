"""The PPO stage: puts four roles on one base, runs the trainer, saves the policy's adapter."""

import logging
from collections.abc import Mapping
from typing import Any

from data.chat import decode_response, drop_long, encode_prompt, render_prompt_text
from data.errors import DataError, StageError
from data.schema import read_split
from rewards.contract import Episode
from rewards.learned import LearnedReward
from stages.contract import Artifact, StageContext, StageOutput
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.scalar_head import ScoreHead, ScoreNormalization, ValueHead
from stages.models.score_model import SharedBaseScoreModel
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer, save_tokenizer
from stages.models.tuning import check_adapter, save_adapter, score_weight
from stages.ppo.config import PPOConfig
from stages.ppo.experience import PPOModels
from stages.ppo.trainer import PPOTrainer
from stages.rollouts.contract import Rollout
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
    for folder in (policy_folder, reward_folder):
        check_adapter(folder, model, config_dir=context.config_dir)
    tokenizer = load_tokenizer(policy_folder, model, context.config_dir)
    prompts, texts, dropped = _prompts(config, inputs["dataset"], tokenizer)
    logger.info(
        "%d prompts (%d dropped as too long), %d steps of %d episodes, engine %s",
        len(prompts), dropped, config.steps, config.batch_size, config.rollout.engine,
    )  # fmt: skip

    shared_base = SharedBase(load_causal_lm(base, model, context.device), model)
    shared_base.add_adapter("reference", policy_folder, trainable=False)
    shared_base.copy_adapter("reference", "policy", trainable=True)
    shared_base.add_adapter("reward", reward_folder, trainable=False)
    shared_base.copy_adapter("reward", "critic", trainable=True)
    if config.gradient_checkpointing:
        shared_base.enable_gradient_checkpointing()
    weight, normalization = score_weight(reward_folder), ScoreNormalization.load(reward_folder)
    pad_token_id = tokenizer.pad_token_id
    models = PPOModels(
        shared_base=shared_base,
        value_head=ValueHead(weight, normalization).to(shared_base.device),
        pad_token_id=pad_token_id,
    )
    engine = build_engine(
        config.rollout,
        model,
        shared_base,
        base=base,
        tokenizer=tokenizer,
        prompts=prompts,
        batch_size=config.batch_size,
        max_prompt_tokens=config.max_prompt_tokens,
        context=context,
    )
    try:
        engine.load_policy("policy")
        trainer = PPOTrainer(
            config=config,
            models=models,
            rollout_engine=engine,
            reward_function=LearnedReward(
                SharedBaseScoreModel(
                    shared_base,
                    ScoreHead(weight, normalization),
                    role="reward",
                    pad_token_id=pad_token_id,
                    batch_size=config.microbatch_size,
                )
            ),
            to_episode=lambda rollout: _episode(tokenizer, texts, rollout),
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
            "critic_initialisation": "reward model, with its normalisation folded into the value head",
            "bad_steps": trainer.num_bad_steps,
        },
    )


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
) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], str], int]:
    """Training prompts as ids, the text of each, and how many were too long."""
    records = read_split(dataset.path, "prompts", "train")
    encoded = [tuple(encode_prompt(tokenizer, record.prompt)) for record in records]
    kept, dropped = drop_long(encoded, config.max_prompt_tokens)
    if not kept:
        raise DataError(
            f"ppo: all {dropped} prompts are longer than ppo.max_prompt_tokens={config.max_prompt_tokens}; at least "
            f"one has to fit: raise `ppo.max_prompt_tokens`"
        )
    texts = {encoded[row]: render_prompt_text(tokenizer, records[row].prompt) for row in kept}
    return [encoded[row] for row in kept], texts, dropped


def _episode(tokenizer: Any, texts: Mapping[tuple[int, ...], str], rollout: Rollout) -> Episode:
    """A rollout with its texts, for reward functions that read."""
    return Episode(
        prompt_text=texts[rollout.prompt_ids],
        response_text=decode_response(tokenizer, rollout.response_ids),
        prompt_ids=rollout.prompt_ids,
        response_ids=rollout.response_ids,
    )
