"""Samples K responses a prompt; the models are gone when it returns."""

import gc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.chat import drop_long, encode_prompt
from data.schema import PromptRecord, Split, read_split
from rewards.contract import Episode
from stages.contract import Artifact, StageContext
from stages.models.adapters import check_adapter
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.reward_loading import as_reward, load_score_model
from stages.models.shared_base import SharedBase
from stages.models.sources import adapter_folder, resolve_base
from stages.models.tokenizer import load_tokenizer
from stages.positions import check_prompts
from stages.preferences.config import DisagreementSelectionConfig, PreferencesConfig
from stages.preferences.contract import Candidates
from stages.preferences.disagreement import pair_disagreements
from stages.preferences.sampled import Sampled
from stages.rollouts.contract import RolloutEngine
from stages.rollouts.episodes import make_episode
from stages.rollouts.factory import build_engine
from stages.seeds import derive_seed, row_seeds

logger = logging.getLogger(__name__)


def sample(
    config: PreferencesConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Sampled:
    """Sample the responses to the prompts of both splits; a function of the run's seed and the prompts.

    Args:
        config: How many responses, and from which policy.
        model: Base and adapter.
        inputs: `dataset` and `policy`, the SFT adapter.
        context: Seed, device, progress.
    """
    sampled = _sample(config, model, inputs, context)
    gc.collect()  # a model's parts lead to each other; people may take days now
    if context.device == "cuda":
        torch.cuda.empty_cache()
    return sampled


def _sample(
    config: PreferencesConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Sampled:
    policy = policy_folder(config, inputs, context.config_dir)
    base = resolve_base(model, context.config_dir)
    check_adapter(policy, model, config_dir=context.config_dir)
    # SFT's, whichever policy answers: the pairs are for stages that read prompts with it.
    tokenizer = load_tokenizer(inputs["policy"].path, model, context.config_dir)
    shared_base = SharedBase(load_causal_lm(base, model, context.device), model)
    shared_base.add_adapter("policy", policy, trainable=False)
    engine = build_engine(
        config.rollout,
        model,
        shared_base,
        base=base,
        tokenizer=tokenizer,
        prompts=_probe_prompts(config, inputs["dataset"], tokenizer),
        batch_size=config.batch_size,
        max_prompt_tokens=config.max_prompt_tokens,
        context=context,
    )
    candidates: dict[Split, list[Candidates]] = {}
    dropped: dict[Split, int] = {}
    try:
        engine.load_policy("policy")
        limits: dict[Split, int | None] = {"train": config.num_prompts, "held_out": config.num_held_out_prompts}
        for split, limit in limits.items():
            records = read_split(inputs["dataset"].path, "prompts", split)
            candidates[split], dropped[split] = _respond(
                config, records, limit, tokenizer, engine, context, split, shared_base.max_positions
            )
    finally:
        engine.close()
    disagreements = None
    if isinstance(config.selection, DisagreementSelectionConfig):
        disagreements = _disagreements(config.selection, model, candidates, shared_base, tokenizer, context)
    return Sampled(candidates, dropped, disagreements)


def policy_folder(config: PreferencesConfig, inputs: Mapping[str, Artifact], config_dir: Path | None) -> Path:
    """The folder of the policy whose responses are judged."""
    if config.policy == "sft":
        return inputs["policy"].path
    return adapter_folder(config.policy, config_dir, "preferences.policy")


def _probe_prompts(config: PreferencesConfig, dataset: Artifact, tokenizer: Any) -> list[list[int]]:
    """The first training prompts that are short enough."""
    records = read_split(dataset.path, "prompts", "train")
    encoded = [encode_prompt(tokenizer, record.prompt) for record in records[: 4 * config.rollout.num_probe_prompts]]
    kept, _ = drop_long(encoded, config.max_prompt_tokens)
    return [encoded[row] for row in kept[: config.rollout.num_probe_prompts]]


def _respond(
    config: PreferencesConfig,
    records: Sequence[PromptRecord],
    limit: int | None,
    tokenizer: Any,
    engine: RolloutEngine,
    context: StageContext,
    split: Split,
    positions: int | None,
) -> tuple[list[Candidates], int]:
    """The responses to the prompts of one split, and how many of its prompts are too long."""
    encoded = [encode_prompt(tokenizer, record.prompt) for record in records]
    kept, dropped = drop_long(encoded, config.max_prompt_tokens)
    chosen = kept[:limit]
    check_prompts("preferences", [encoded[row] for row in chosen], config.rollout.max_new_tokens, positions)
    repeated = [row for row in chosen for _ in range(config.responses_per_prompt)]
    episodes: list[Episode] = []
    for start in range(0, len(repeated), config.batch_size):
        rows = repeated[start : start + config.batch_size]
        seeds = row_seeds(derive_seed(context.seed, f"preferences/{split}", start), len(rows))
        rollouts = engine.generate([encoded[row] for row in rows], config.rollout, seeds=seeds)
        episodes += [
            make_episode(tokenizer, records[row].prompt, rollout) for row, rollout in zip(rows, rollouts, strict=True)
        ]
        context.report_progress(len(episodes), len(repeated), f"{split} responses")
    candidates = [
        Candidates(tuple(episodes[first : first + config.responses_per_prompt]))
        for first in range(0, len(episodes), config.responses_per_prompt)
    ]
    return candidates, dropped


def _disagreements(
    selection: DisagreementSelectionConfig,
    model: ModelConfig,
    candidates: Mapping[Split, Sequence[Candidates]],
    shared_base: SharedBase,
    tokenizer: Any,
    context: StageContext,
) -> dict[Split, list[tuple[float, ...]]]:
    """What the reward models disagree on, by pair, for each prompt. One reward model after the other is loaded."""
    scores: dict[Split, list[list[float]]] = {split: [] for split in candidates}
    for number, name in enumerate(selection.reward_models):
        folder = adapter_folder(name, context.config_dir, "preferences.selection.reward_models")
        judge = as_reward(
            load_score_model(
                folder,
                model,
                shared_base,
                pad_token_id=tokenizer.pad_token_id,
                batch_size=selection.batch_size,
                device=context.device,
                config_dir=context.config_dir,
                role=f"selection-{number}",
            )
        )
        for split, sampled in candidates.items():
            scores[split] += judge.by_member([episode for each in sampled for episode in each.episodes])
        context.report_progress(number + 1, len(selection.reward_models), "reward models asked")
    found: dict[Split, list[tuple[float, ...]]] = {}
    for split, sampled in candidates.items():
        width = len(sampled[0].episodes) if sampled else 0
        found[split] = [
            pair_disagreements([member[width * row : width * (row + 1)] for member in scores[split]])
            for row in range(len(sampled))
        ]
    return found
