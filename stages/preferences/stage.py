"""Preference collection: K responses a prompt from the SFT policy, ranked by a labeler.

Pairs for validation come from held-out prompts, so that the reward model is judged on prompts that no stage
trains on.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from data.chat import drop_long, encode_prompt
from data.errors import StageError
from data.schema import PreferencePair, PromptRecord, Split, read_split, split_path, write_records
from rewards.contract import Episode
from stages.contract import Artifact, StageContext, StageOutput
from stages.models.adapters import check_adapter
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer
from stages.positions import check_prompts
from stages.preferences.config import PreferencesConfig
from stages.preferences.contract import Candidates
from stages.preferences.labelers import build_labeler
from stages.preferences.ranking import rank_pairs
from stages.rollouts.contract import RolloutEngine
from stages.rollouts.episodes import make_episode
from stages.rollouts.factory import build_engine
from stages.seeds import derive_seed, row_seeds

logger = logging.getLogger(__name__)


def run(
    config: PreferencesConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageOutput:
    """Sample, score, pair.

    Args:
        config: How many responses, by which labeler.
        model: Base and adapter.
        inputs: `dataset` and `policy`, the SFT adapter.
        context: Where to write.

    Returns:
        Counts of responses and pairs, mean score of the labeler, share of distinct responses.

    Raises:
        StageError: No pair came out.
    """
    base = resolve_base(model, context.config_dir)
    check_adapter(inputs["policy"].path, model, config_dir=context.config_dir)
    tokenizer = load_tokenizer(inputs["policy"].path, model, context.config_dir)
    shared_base = SharedBase(load_causal_lm(base, model, context.device), model)
    shared_base.add_adapter("policy", inputs["policy"].path, trainable=False)
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
    metrics: dict[str, float] = {}
    try:
        engine.load_policy("policy")
        limits: dict[Split, int | None] = {"train": config.num_prompts, "held_out": config.num_held_out_prompts}
        for split, limit in limits.items():
            records = read_split(inputs["dataset"].path, "prompts", split)
            pairs, found = _collect(
                config, records, limit, tokenizer, engine, context, split, shared_base.max_positions
            )
            write_records(split_path(context.payload_dir, "preferences", split), pairs)
            metrics |= {f"{split}/{name}": value for name, value in found.items()}
    finally:
        engine.close()
    if not metrics["train/pairs"]:
        raise StageError(
            f"preferences: no pair came out of {metrics['train/responses']:.0f} responses: the labeler gave all "
            f"responses to a prompt one score, they are all alike, or the length limit cut them off "
            f"({metrics['train/finished_share']:.0%} ended by themselves); use another `preferences.labeler`, a higher "
            f"`preferences.rollout.temperature` or `max_new_tokens`, or `preferences.only_finished: false`"
        )
    context.metrics.write(0, metrics)
    return StageOutput(metrics)


def _probe_prompts(config: PreferencesConfig, dataset: Artifact, tokenizer: Any) -> list[list[int]]:
    """The first training prompts that are short enough."""
    records = read_split(dataset.path, "prompts", "train")
    encoded = [encode_prompt(tokenizer, record.prompt) for record in records[: 4 * config.rollout.num_probe_prompts]]
    kept, _ = drop_long(encoded, config.max_prompt_tokens)
    return [encoded[row] for row in kept[: config.rollout.num_probe_prompts]]


def _collect(
    config: PreferencesConfig,
    records: Sequence[PromptRecord],
    limit: int | None,
    tokenizer: Any,
    engine: RolloutEngine,
    context: StageContext,
    split: Split,
    positions: int | None,
) -> tuple[list[PreferencePair], dict[str, float]]:
    """Pairs of one split, and what is worth knowing of its responses."""
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
    opinions = build_labeler(config)(candidates)
    rng = random.Random(derive_seed(context.seed, f"labels/{split}", 0))
    pairs: list[PreferencePair] = []
    for each, opinion in zip(candidates, opinions, strict=True):
        usable = (episode.finished or not config.only_finished for episode in each.episodes)
        pairs += rank_pairs(
            each,
            tuple(value if kept else None for value, kept in zip(opinion, usable, strict=True)),
            pairs_per_prompt=config.pairs_per_prompt,
            label_noise=getattr(config.labeler, "label_noise", 0.0),
            rng=rng,
        )
    scores = [value for opinion in opinions for value in opinion if value is not None]
    texts = {(episode.prompt_text, episode.response_text) for episode in episodes}
    logger.info("%s: %d responses to %d prompts, %d pairs", split, len(episodes), len(chosen), len(pairs))
    return pairs, {
        "prompts": float(len(chosen)),
        "dropped": float(dropped),
        "responses": float(len(episodes)),
        "finished_share": sum(episode.finished for episode in episodes) / max(len(episodes), 1),
        "distinct_share": len(texts) / max(len(episodes), 1),
        "labeler_score": sum(scores) / max(len(scores), 1),
        "pairs": float(len(pairs)),
    }
