"""The evaluation: SFT against PPO on prompts that no stage has trained on.

Both policies answer the same prompts with the same seed; all figures are paired by prompt.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.chat import drop_long, encode_prompt
from data.collators import collate_episodes
from data.errors import DataError
from data.schema import Prompt, read_split
from rewards.contract import Episode, RewardFunction
from rewards.rules import build_rule_reward
from stages.artifacts import write_json
from stages.contract import Artifact, StageContext, StageOutput
from stages.evaluation.config import EvaluationConfig
from stages.evaluation.statistics import bootstrap_mean, distinct_n, win_scores
from stages.models.adapters import check_adapter, check_reward_model
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.reward_loading import as_reward, load_score_model
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer
from stages.positions import check_prompts
from stages.rollouts.contract import Rollout
from stages.rollouts.episodes import make_episode
from stages.rollouts.factory import build_engine
from stages.seeds import derive_seed, row_seeds

logger = logging.getLogger(__name__)

_DISTINCT_ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class _Side:
    """The responses of one policy with their scores."""

    rollouts: list[Rollout]
    episodes: list[Episode]
    proxy: list[float]
    gold: list[float] | None


def run(
    config: EvaluationConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageOutput:
    """Sample both policies, score, compare.

    Args:
        config: Prompts, gold scorer, bootstrap.
        model: Base and adapter.
        inputs: `dataset`, `reference` (SFT), `policy` (PPO) and `reward_model`.
        context: Where to write.

    Returns:
        The metrics that DESIGN section 3 names.

    Raises:
        DataError: No prompt is held out, or none is short enough.
    """
    base = resolve_base(model, context.config_dir)
    for role in ("reference", "policy"):
        check_adapter(inputs[role].path, model, config_dir=context.config_dir)
    check_reward_model(inputs["reward_model"].path, model, config_dir=context.config_dir)
    tokenizer = load_tokenizer(inputs["policy"].path, model, context.config_dir)
    prompts = _prompts(config, inputs["dataset"], tokenizer)
    shared_base = SharedBase(load_causal_lm(base, model, context.device), model)
    shared_base.add_adapter("reference", inputs["reference"].path, trainable=False)
    shared_base.add_adapter("policy", inputs["policy"].path, trainable=False)
    check_prompts("evaluation", prompts, config.rollout.max_new_tokens, shared_base.max_positions)
    proxy = as_reward(
        load_score_model(
            inputs["reward_model"].path,
            model,
            shared_base,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=config.batch_size,
            device=context.device,
            config_dir=context.config_dir,
        )
    )
    gold = None if config.gold is None else build_rule_reward(config.gold)
    engine = build_engine(
        config.rollout,
        model,
        shared_base,
        base=base,
        tokenizer=tokenizer,
        prompts=list(prompts),
        batch_size=config.batch_size,
        max_prompt_tokens=config.max_prompt_tokens,
        context=context,
    )
    sides = {}
    try:
        for number, role in enumerate(("reference", "policy")):
            context.report_progress(number, 2, f"{role} answers {len(prompts)} prompts")
            engine.load_policy(role)
            seeds = row_seeds(derive_seed(context.seed, "evaluation", 0), len(prompts))
            rollouts = engine.generate(list(prompts), config.rollout, seeds=seeds)
            sides[role] = _judge(rollouts, prompts, tokenizer, proxy, gold)
    finally:
        engine.close()
    before, after = sides["reference"], sides["policy"]
    metrics = _metrics(config, before, after, seed=context.seed)
    metrics["kl/mean"] = _mean_kl(config, shared_base, after.rollouts, tokenizer.pad_token_id)
    context.metrics.write(0, metrics)
    context.report_progress(2, 2, "done")
    write_json(context.payload_dir / "metrics.json", metrics)
    _write_samples(context, before, after)
    for row in _samples(before, after)[: config.num_examples]:
        logger.info("%s | before:%s | after:%s", row["prompt"], row["before"], row["after"])
    return StageOutput(metrics)


def _prompts(config: EvaluationConfig, dataset: Artifact, tokenizer: Any) -> dict[tuple[int, ...], Prompt]:
    """Held-out prompts as ids, with the records' prompts."""
    records = read_split(dataset.path, "prompts", "held_out")
    encoded = [tuple(encode_prompt(tokenizer, record.prompt)) for record in records]
    kept, dropped = drop_long(encoded, config.max_prompt_tokens)
    if len(kept) < 2:
        raise DataError(
            f"evaluation: {len(records)} prompts are held out, {dropped} of them longer than "
            f"evaluation.max_prompt_tokens={config.max_prompt_tokens}; at least 2 are needed for an interval: raise "
            f"`held_out` of the prompts' source, or the limit"
        )
    return {encoded[row]: records[row].prompt for row in kept[: config.num_prompts]}


def _judge(
    rollouts: list[Rollout],
    prompts: Mapping[tuple[int, ...], Prompt],
    tokenizer: Any,
    proxy: RewardFunction,
    gold: RewardFunction | None,
) -> _Side:
    episodes = [make_episode(tokenizer, prompts[rollout.prompt_ids], rollout) for rollout in rollouts]
    return _Side(rollouts, episodes, proxy(episodes), None if gold is None else gold(episodes))


def _metrics(config: EvaluationConfig, before: _Side, after: _Side, *, seed: int) -> dict[str, float]:
    metrics = _compare("proxy", "win_rate", before.proxy, after.proxy, config.bootstrap_samples, seed)
    if before.gold is not None and after.gold is not None:
        metrics |= _compare("gold", "gold_win_rate", before.gold, after.gold, config.bootstrap_samples, seed)
    for name, side in (("before", before), ("after", after)):
        responses = [episode.response_text for episode in side.episodes]
        lengths = [len(rollout.response_ids) for rollout in side.rollouts]
        metrics[f"response_length/{name}"] = sum(lengths) / len(lengths)
        metrics[f"finished_fraction/{name}"] = sum(r.finished for r in side.rollouts) / len(lengths)
        for order in _DISTINCT_ORDERS:
            metrics[f"distinct_{order}/{name}"] = distinct_n(responses, order)
    metrics["prompts"] = float(len(before.episodes))
    return metrics


def _compare(
    scorer: str, win_name: str, before: Sequence[float], after: Sequence[float], num_samples: int, seed: int
) -> dict[str, float]:
    """Paired gain and win rate by one scorer."""
    gain = bootstrap_mean(
        [new - old for old, new in zip(before, after, strict=True)], num_samples=num_samples, seed=seed
    )
    wins = bootstrap_mean(win_scores(before, after), num_samples=num_samples, seed=seed)
    return {
        f"{scorer}/before": sum(before) / len(before),
        f"{scorer}/after": sum(after) / len(after),
        f"{scorer}/gain": gain.mean,
        f"{scorer}/gain_low": gain.low,
        f"{scorer}/gain_high": gain.high,
        f"{win_name}/mean": wins.mean,
        f"{win_name}/low": wins.low,
        f"{win_name}/high": wins.high,
    }


@torch.no_grad()
def _mean_kl(
    config: EvaluationConfig, shared_base: SharedBase, rollouts: Sequence[Rollout], pad_token_id: int
) -> float:
    """Sum of k1 over a response's tokens, mean over PPO's responses, in nats, by the trainer's weights."""
    total = 0.0
    for start in range(0, len(rollouts), config.batch_size):
        rows = rollouts[start : start + config.batch_size]
        batch = collate_episodes(
            [rollout.prompt_ids for rollout in rows], [rollout.response_ids for rollout in rows], pad_token_id
        ).to(shared_base.device)
        found = {}
        for role in ("policy", "reference"):
            with shared_base.role(role):
                found[role], _ = shared_base.response_logprobs(batch, temperature=config.rollout.temperature)
        total += float((found["policy"] - found["reference"]).sum())
    return total / len(rollouts)


def _samples(before: _Side, after: _Side) -> list[dict[str, Any]]:
    rows = []
    for number, episode in enumerate(before.episodes):
        row: dict[str, Any] = {
            "prompt": episode.prompt_text,
            "before": episode.response_text,
            "after": after.episodes[number].response_text,
            "proxy_before": before.proxy[number],
            "proxy_after": after.proxy[number],
        }
        if before.gold is not None and after.gold is not None:
            row |= {"gold_before": before.gold[number], "gold_after": after.gold[number]}
        rows.append(row)
    return rows


def _write_samples(context: StageContext, before: _Side, after: _Side) -> None:
    """All samples, so that any figure can be checked by hand."""
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in _samples(before, after)]
    (context.payload_dir / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
