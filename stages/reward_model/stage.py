"""The reward model: learned from preference pairs or rankings, from the SFT adapter, scores normalised.

A `SEQ_CLS` adapter, so that PEFT saves the score head with it. After training the saved artifact is loaded as
the later stages load it, on the shared base; held-out accuracy and the normalisation are measured on that.

With `reward_model.model` it is a fresh adapter on another base, with that base's tokenizer, and loaded apart.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trl import RewardConfig as TrlRewardConfig

from data.batch_encoding import encode_episodes, retokenize_episodes
from data.errors import DataError
from data.schema import PreferencePair, read_split
from stages.accelerator import (
    MetricsCallback,
    is_main_process,
    shared_training_arguments,
    train_in_float32,
)
from stages.contract import Artifact, StageContext, StageOutput
from stages.length_order import padding_metrics
from stages.memory_errors import memory_errors_told
from stages.models.adapters import check_adapter
from stages.models.config import ModelConfig
from stages.models.loading import load_base_config, load_causal_lm, load_sequence_classifier
from stages.models.own_base import names_own_base, save_own_base
from stages.models.reward_loading import as_reward, load_trained_model
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import choose_pad_token, load_tokenizer, save_tokenizer
from stages.models.tuning import attach_adapter, load_adapter_weights, lora_config, save_adapter
from stages.positions import check_examples, known_positions
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.evaluation import evaluate_pairs
from stages.reward_model.evaluation_pairs import TokenizedPair
from stages.reward_model.examples import pair_dataset, ranking_dataset
from stages.reward_model.normalization import normalize
from stages.reward_model.pretrained import use_pretrained
from stages.reward_model.rankings import rankings_of
from stages.reward_model.trainer import BradleyTerryTrainer, PlackettLuceTrainer, RankingCollator, WeightedPairCollator
from stages.trainer_faults import run_trainer

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
        `eval/*` on held-out pairs, `normalization/{shift,scale}`, counts.

    Raises:
        DataError: No pair is left after dropping those over `max_length`, or no prompt to normalise on.
    """
    if config.pretrained is not None:
        return use_pretrained(config, model, inputs, context)
    policy_base = resolve_base(model, context.config_dir)
    sft_folder = inputs["policy"].path
    check_adapter(sft_folder, model, config_dir=context.config_dir)
    trained = config.model or model
    tokenizer = _load_tokenizer(config, model, sft_folder, context)
    pairs_folder = inputs.get("preferences", inputs["dataset"]).path
    train, dropped = _tokenize(read_split(pairs_folder, "preferences", "train"), tokenizer, config)
    held_out, _ = _tokenize(read_split(pairs_folder, "preferences", "held_out"), tokenizer, config)
    if not train:
        raise DataError(
            f"reward_model: all {dropped} pairs are longer than reward_model.max_length={config.max_length} tokens; "
            f"at least one has to fit: raise `reward_model.max_length`"
        )
    logger.info("%d pairs (%d dropped as too long), %d held out", len(train), dropped, len(held_out))
    notes: dict[str, Any] = {}
    if config.model is not None:
        notes["pad_token"] = _choose_pad(config.model, tokenizer, train + held_out, context)

    peft_model = _load_classifier(config, model, tokenizer, sft_folder, context)
    longest = (
        len(pair.prompt_ids) + len(response)
        for pair in train + held_out
        for response in (pair.chosen_ids, pair.rejected_ids)
    )
    check_examples("reward_model", longest, known_positions(peft_model.config))
    trainer = _make_trainer(config, trained, context, peft_model, tokenizer, train, held_out)
    train_in_float32(trainer.model)
    run_trainer(trainer, "reward_model", config, trained, context)
    if not is_main_process():
        return StageOutput({})
    payload = context.payload_dir
    save_adapter(trainer.accelerator.unwrap_model(trainer.model), "default", payload, base_spec=trained.base)
    save_tokenizer(tokenizer, payload)
    if config.model is not None:
        save_own_base(payload, config.model)
    del trainer, peft_model
    metrics = {
        "data/train": float(len(train)),
        "data/held_out": float(len(held_out)),
        "data/dropped": float(dropped),
    } | padding_metrics(
        _lengths(config, train), batch_size=config.batch_size, microbatch_size=config.microbatch_size, seed=context.seed
    )
    if config.loss == "plackett_luce":
        metrics["data/rankings"] = float(len(rankings_of(train)))
    sections = config.model_dump(mode="json"), model.model_dump(mode="json")
    with memory_errors_told("reward_model", "normalization", *sections):
        shared_base = SharedBase(load_causal_lm(policy_base, model, context.device), model)
        return _finish(config, model, inputs, context, shared_base, held_out, metrics, notes)


def _make_trainer(
    config: RewardModelConfig,
    trained: ModelConfig,
    context: StageContext,
    peft_model: Any,
    tokenizer: Any,
    train: Sequence[TokenizedPair],
    held_out: Sequence[TokenizedPair],
) -> BradleyTerryTrainer:
    """The trainer of the configured loss with its examples."""
    on_rankings = config.loss == "plackett_luce"
    if on_rankings and any(pair.margin is not None for pair in train):
        logger.warning("reward_model: margins are stated, and loss=plackett_luce does not use them")

    def dataset(pairs: Sequence[TokenizedPair]) -> Any:
        return ranking_dataset(rankings_of(pairs)) if on_rankings else pair_dataset(pairs)

    collator = RankingCollator if on_rankings else WeightedPairCollator
    return (PlackettLuceTrainer if on_rankings else BradleyTerryTrainer)(
        lengths=_lengths(config, train),
        batch_size=config.batch_size,
        label_smoothing=config.label_smoothing,
        center_coefficient=config.center_coefficient,
        model=peft_model,
        args=TrlRewardConfig(
            **shared_training_arguments(config, trained, context, num_examples=len(_lengths(config, train))),
            eval_strategy="epoch" if held_out else "no",
            save_strategy="no",
            max_length=None,
            disable_dropout=False,  # dropout 0 is already set unless `tuning.dropout` asks for it
        ),
        data_collator=collator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=dataset(train),
        eval_dataset=dataset(held_out) if held_out else None,
        processing_class=tokenizer,
        callbacks=[MetricsCallback(context)],
    )


def _lengths(config: RewardModelConfig, pairs: Sequence[TokenizedPair]) -> list[tuple[int, ...]]:
    """Lengths of the sequences of each example: a pair, or a ranking."""
    if config.loss == "plackett_luce":
        return [tuple(map(len, ranking.sequences)) for ranking in rankings_of(pairs)]
    return [
        (len(pair.prompt_ids) + len(pair.chosen_ids), len(pair.prompt_ids) + len(pair.rejected_ids)) for pair in pairs
    ]


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


def _load_classifier(
    config: RewardModelConfig, model: ModelConfig, tokenizer: Any, sft_folder: Path, context: StageContext
) -> Any:
    """The model to train: from the SFT adapter on the shared base, from a fresh adapter on another one."""
    if config.model is None:
        peft_model = _fresh_classifier(model, tokenizer, context)
        load_adapter_weights(peft_model, sft_folder, "default")
        return peft_model
    with names_own_base():
        return _fresh_classifier(config.model, tokenizer, context)


def _fresh_classifier(model: ModelConfig, tokenizer: Any, context: StageContext) -> Any:
    base = resolve_base(model, context.config_dir)
    classifier = load_sequence_classifier(base, model, context.device, tokenizer.pad_token_id, seed=context.seed)
    return attach_adapter(classifier, lora_config(model, classifier.config, "seq_cls"), seed=context.seed)


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
    if held_out:
        found, measured = evaluate_pairs(raw, held_out)
        metrics |= found
        notes |= measured
        logger.info(
            "held-out accuracy %.3f on %d pairs (longer response: %.3f)",
            found["eval/accuracy"], len(held_out), found["eval/length_baseline_accuracy"],
        )  # fmt: skip
    normalization = normalize(config.normalization, as_reward(raw), shared_base, inputs, model, context)
    normalization.save(context.payload_dir)
    metrics |= {"normalization/shift": normalization.shift, "normalization/scale": normalization.scale}
    return StageOutput(metrics, notes=notes)


def _tokenize(
    pairs: list[PreferencePair], tokenizer: Any, config: RewardModelConfig
) -> tuple[list[TokenizedPair], int]:
    """Pairs as token ids, and how many were dropped because one side is too long."""
    # On another base as the policy's responses will be scored there, so that training sees the same form.
    encode = encode_episodes if config.model is None else retokenize_episodes
    encoded = encode(tokenizer, [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs])
    tokenized = [
        TokenizedPair(prompt, chosen, rejected, pair.margin, pair.weight, pair.source, pair.ranking)
        for (prompt, (chosen, rejected)), pair in zip(encoded, pairs, strict=True)
    ]
    kept = [
        pair
        for pair in tokenized
        if len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) <= config.max_length
    ]
    return kept, len(tokenized) - len(kept)
