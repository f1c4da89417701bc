"""Mean and deviation of the raw scores of each member of a reward model on responses of the SFT policy."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.chat import drop_long, encode_prompt
from data.errors import DataError
from data.schema import Prompt, read_split
from rewards.contract import EnsembleRewardFunction
from stages.contract import Artifact, StageContext
from stages.models.config import ModelConfig
from stages.models.scalar_head import ScoreNormalization
from stages.models.shared_base import SharedBase
from stages.models.tokenizer import load_tokenizer
from stages.reward_model.config import NormalizationConfig
from stages.rollouts.contract import RolloutEngine
from stages.rollouts.episodes import make_episode
from stages.rollouts.hf_engine import HFEngine
from stages.seeds import row_seeds


def measure_normalizations(
    config: NormalizationConfig,
    raw: EnsembleRewardFunction,
    engine: RolloutEngine,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    positions: int | None = None,
) -> list[ScoreNormalization]:
    """Sample the SFT policy and score what it says.

    Args:
        config: How many prompts, how long, and whether the deviation counts.
        raw: Scores before any normalisation.
        engine: With the SFT policy loaded.
        tokenizer: The policy's.
        prompts: To train on, of which the first that fit are taken.
        seed: Of the responses.
        positions: What the policy's base knows; None where it does not say.

    Returns:
        For each member the mean as shift, and the deviation as scale where it is asked for.

    Raises:
        DataError: No prompt is short enough.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    longest, limit = (
        config.max_prompt_tokens,
        f"reward_model.normalization.max_prompt_tokens={config.max_prompt_tokens}",
    )
    if positions is not None and positions - config.sampling.max_new_tokens < longest:
        longest = positions - config.sampling.max_new_tokens
        limit = f"{longest} tokens, which the base's {positions} positions leave beside a response"
    kept, dropped = drop_long(encoded, longest)
    if not kept:
        raise DataError(
            f"reward_model: all {dropped} prompts are longer than {limit}; the scores are normalised on responses to "
            f"them: raise that limit"
        )
    chosen = kept[: config.num_prompts]
    seeds = row_seeds(seed, len(chosen))
    rollouts = engine.generate([encoded[row] for row in chosen], config.sampling, seeds=seeds)
    episodes = [make_episode(tokenizer, prompts[row], rollout) for row, rollout in zip(chosen, rollouts, strict=True)]
    return [_normalization(torch.tensor(scores), config) for scores in raw.by_member(episodes)]


def _normalization(scores: Tensor, config: NormalizationConfig) -> ScoreNormalization:
    scale = float(scores.std(correction=0)) if config.unit_variance else 1.0
    return ScoreNormalization(float(scores.mean()), max(scale, 1e-6), len(scores))


def normalize(
    config: NormalizationConfig,
    raw: EnsembleRewardFunction,
    shared_base: SharedBase,
    inputs: Mapping[str, Artifact],
    model: ModelConfig,
    context: StageContext,
) -> list[ScoreNormalization]:
    """Measure each member's on the policy of a stage's inputs.

    Args:
        config: As for `measure_normalizations`.
        raw: Scores before any normalisation.
        shared_base: With the role `policy`.
        inputs: `dataset` and `policy`.
        model: The shared base and adapter.
        context: Seed and folders of the stage.

    Raises:
        DataError: No prompt is short enough.
    """
    tokenizer = load_tokenizer(inputs["policy"].path, model, context.config_dir)
    engine = HFEngine(
        shared_base,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        batch_size=config.batch_size,
    )
    engine.load_policy("policy")
    return measure_normalizations(
        config,
        raw,
        engine,
        tokenizer,
        [record.prompt for record in read_split(inputs["dataset"].path, "prompts", "train")],
        seed=context.seed,
        positions=shared_base.max_positions,
    )
