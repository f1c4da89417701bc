"""The reward model: learned from preference pairs or rankings, from the SFT adapter, scores normalised.

A `SEQ_CLS` adapter, so that PEFT saves the score head with it. After training the saved artifact is loaded as
the later stages load it, on the shared base; held-out accuracy and the normalisation are measured on that.

With `reward_model.ensemble` there are several such adapters, or heads (`stages.models.reward_members`).

With `reward_model.model` it is a fresh adapter on another base, with that base's tokenizer, and loaded apart.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.errors import DataError
from rewards.ensemble import mean_of_members
from stages.accelerator import is_main_process
from stages.contract import Artifact, StageContext, StageOutput
from stages.length_order import padding_metrics
from stages.memory_errors import memory_errors_told
from stages.models.adapters import check_adapter
from stages.models.config import ModelConfig
from stages.models.loading import load_base_config, load_causal_lm
from stages.models.own_base import names_own_base, save_own_base
from stages.models.reward_loading import as_reward, load_trained_model
from stages.models.scalar_head import ScoreNormalization
from stages.models.score_heads import save_normalizations
from stages.models.score_model import SharedBaseScoreModel
from stages.models.separate_score_model import SeparateScoreModel
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import choose_pad_token, load_tokenizer, save_tokenizer
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.evaluation import evaluate_scores
from stages.reward_model.evaluation_pairs import TokenizedPair
from stages.reward_model.members import compare_members, normalised
from stages.reward_model.normalization import normalize
from stages.reward_model.pretrained import use_pretrained
from stages.reward_model.rankings import rankings_of
from stages.reward_model.tokenized import tokenized_split
from stages.reward_model.training import sequence_lengths, train_members

logger = logging.getLogger(__name__)


def run(
    config: RewardModelConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageOutput:
    """Train, save, load again, evaluate, normalise.

    Args:
        config: Learning settings, and the base where it is not the shared one.
        model: The shared base and adapter: the policy's.
        inputs: `dataset`, `policy` (the SFT adapter, to start from and to normalise on) and, where that stage ran,
            `preferences`.
        context: Where to write.

    Returns:
        `eval/*` on held-out pairs, `ensemble/*` where there are several members, `normalization/{shift,scale}`, counts.

    Raises:
        DataError: No pair is left after dropping those over `max_length`, or no prompt to normalise on.
    """
    if config.pretrained is not None:
        return use_pretrained(config, model, inputs, context)
    policy_base = resolve_base(model, context.config_dir)
    sft_folder = inputs["policy"].path
    check_adapter(sft_folder, model, config_dir=context.config_dir)
    tokenizer = _load_tokenizer(config, model, sft_folder, context)
    source = inputs.get("preferences", inputs["dataset"])
    train, dropped = tokenized_split(source, "train", tokenizer, config, context.token_dir)
    held_out, _ = tokenized_split(source, "held_out", tokenizer, config, context.token_dir)
    if not train:
        raise DataError(
            f"reward_model: all {dropped} pairs are longer than reward_model.max_length={config.max_length} tokens; "
            f"at least one has to fit: raise `reward_model.max_length`"
        )
    logger.info("%d pairs (%d dropped as too long), %d held out", len(train), dropped, len(held_out))
    notes: dict[str, Any] = {}
    if config.model is not None:
        notes["pad_token"] = _choose_pad(config.model, tokenizer, train + held_out, context)

    train_members(config, model, sft_folder, tokenizer, train, held_out, context)
    if not is_main_process():
        return StageOutput({})
    payload = context.payload_dir
    save_tokenizer(tokenizer, payload)
    if config.model is not None:
        save_own_base(payload, config.model)
    metrics = {
        "data/train": float(len(train)),
        "data/held_out": float(len(held_out)),
        "data/dropped": float(dropped),
    } | padding_metrics(
        sequence_lengths(config, train),
        batch_size=config.batch_size,
        microbatch_size=config.microbatch_size,
        seed=context.seed,
    )
    if config.loss == "plackett_luce":
        metrics["data/rankings"] = float(len(rankings_of(train)))
    sections = config.model_dump(mode="json"), model.model_dump(mode="json")
    with memory_errors_told("reward_model", "normalization", *sections):
        shared_base = SharedBase(load_causal_lm(policy_base, model, context.device), model)
        return _finish(config, model, inputs, context, shared_base, held_out, metrics, notes)


def _load_tokenizer(config: RewardModelConfig, model: ModelConfig, sft_folder: Path, context: StageContext) -> Any:
    """The policy's tokenizer on the shared base, else that of the other base."""
    if config.model is None:
        return load_tokenizer(sft_folder, model, context.config_dir)
    with names_own_base():
        return load_tokenizer(resolve_base(config.model, context.config_dir), config.model, context.config_dir)


def _choose_pad(own: ModelConfig, tokenizer: Any, pairs: list[TokenizedPair], context: StageContext) -> dict[str, Any]:
    """Set the pad token of another base by the rule of SFT; returns it with the reason, for the manifest."""
    with names_own_base():
        base_config = load_base_config(resolve_base(own, context.config_dir), own)
        used = {
            token for pair in pairs for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for token in ids
        }
        pad = choose_pad_token(tokenizer, int(base_config.get_text_config().vocab_size), used)
    logger.info("pad token of %s: %r, %s", own.base, pad.token, pad.reason)
    return asdict(pad)


def _finish(
    config: RewardModelConfig,
    model: ModelConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    shared_base: SharedBase,
    held_out: list[TokenizedPair],
    metrics: dict[str, float],
    notes: dict[str, Any],
) -> StageOutput:
    """Measure the saved artifact and write its normalisation."""
    tokenizer = load_tokenizer(inputs["policy"].path, model, context.config_dir)
    batch_size = config.normalization.batch_size
    shared_base.add_adapter("policy", inputs["policy"].path, trainable=False)
    # Its scores are raw: the artifact has no normalisation yet.
    raw = load_trained_model(
        context.payload_dir,
        model,
        shared_base,
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
        device=context.device,
        config_dir=context.config_dir,
    )
    normalizations = normalize(config.normalization, as_reward(raw), shared_base, inputs, model, context)
    save_normalizations(context.payload_dir, normalizations)
    if held_out:
        found, measured = _evaluate(raw, held_out, normalizations)
        metrics |= found
        notes |= measured
        logger.info(
            "held-out accuracy %.3f on %d pairs (longer response: %.3f)",
            found["eval/accuracy"], len(held_out), found["eval/length_baseline_accuracy"],
        )  # fmt: skip
    saved = ScoreNormalization.load(context.payload_dir)
    metrics |= {"normalization/shift": saved.shift, "normalization/scale": saved.scale}
    return StageOutput(metrics, notes=notes)


def _evaluate(
    raw: SharedBaseScoreModel | SeparateScoreModel,
    pairs: Sequence[TokenizedPair],
    normalizations: Sequence[ScoreNormalization],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and notes on held-out pairs: of the raw scores, of an ensemble's by the mean that later stages see."""
    prompts = [tuple(pair.prompt_ids) for pair in pairs]
    chosen = raw.score_members(prompts, [tuple(pair.chosen_ids) for pair in pairs])
    rejected = raw.score_members(prompts, [tuple(pair.rejected_ids) for pair in pairs])
    if raw.num_members == 1:
        return evaluate_scores(chosen[0], rejected[0], pairs)
    chosen, rejected = normalised(chosen, normalizations), normalised(rejected, normalizations)
    metrics, notes = evaluate_scores(mean_of_members(chosen), mean_of_members(rejected), pairs)
    compared, own_notes = compare_members(chosen, rejected)
    return metrics | compared, notes | own_notes
