"""The reward model: Bradley-Terry on preference pairs, from the SFT adapter, scores normalised.

A `SEQ_CLS` adapter, so that PEFT saves the score head with it. After training the saved artifact is loaded as
the later stages load it, on the shared base; held-out accuracy and the normalisation are measured on that.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from trl import RewardConfig as TrlRewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from data.chat import drop_long, encode_episode, encode_prompt
from data.errors import DataError
from data.schema import PreferencePair, read_split
from stages.accelerator import (
    MetricsCallback,
    is_main_process,
    shared_training_arguments,
    train_in_float32,
)
from stages.contract import Artifact, StageContext, StageOutput
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm, load_sequence_classifier
from stages.models.scalar_head import ScoreHead, ScoreNormalization
from stages.models.score_model import SharedBaseScoreModel
from stages.models.shared_base import SharedBase
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer, save_tokenizer
from stages.models.tuning import (
    attach_adapter,
    check_adapter,
    load_adapter_weights,
    lora_config,
    save_adapter,
    score_weight,
)
from stages.reward_model.config import NormalizationConfig, RewardModelConfig
from stages.reward_model.evaluation import TokenizedPair, evaluate_pairs
from stages.reward_model.trainer import BradleyTerryTrainer
from stages.rollouts.hf_engine import HFEngine
from stages.seeds import row_seeds

logger = logging.getLogger(__name__)


def run(
    config: RewardModelConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageOutput:
    """Train, save, load again, evaluate, normalise.

    Args:
        config: Learning settings.
        model: Base and adapter.
        inputs: `dataset`, `policy` (the SFT adapter to start from) and, where that stage ran, `preferences`.
        context: Where to write.

    Returns:
        `eval/*` on held-out pairs, `normalization/{shift,scale}`, counts.

    Raises:
        DataError: No pair is left after dropping those over `max_length`, or no prompt to normalise on.
    """
    base = resolve_base(model, context.config_dir)
    sft_folder = inputs["policy"].path
    check_adapter(sft_folder, model, config_dir=context.config_dir)
    tokenizer = load_tokenizer(sft_folder, model, context.config_dir)
    pad_token_id = tokenizer.pad_token_id
    pairs_folder = inputs.get("preferences", inputs["dataset"]).path
    train, dropped = _tokenize(read_split(pairs_folder, "preferences", "train"), tokenizer, config)
    held_out, _ = _tokenize(read_split(pairs_folder, "preferences", "held_out"), tokenizer, config)
    if not train:
        raise DataError(
            f"reward_model: all {dropped} pairs are longer than reward_model.max_length={config.max_length} tokens; "
            f"at least one has to fit: raise `reward_model.max_length`"
        )
    logger.info("%d pairs (%d dropped as too long), %d held out", len(train), dropped, len(held_out))

    classifier = load_sequence_classifier(base, model, context.device, pad_token_id, seed=context.seed)
    peft_model = attach_adapter(classifier, lora_config(model, classifier.config, "seq_cls"), seed=context.seed)
    load_adapter_weights(peft_model, sft_folder, "default")
    trainer = BradleyTerryTrainer(
        label_smoothing=config.label_smoothing,
        center_coefficient=config.center_coefficient,
        model=peft_model,
        args=TrlRewardConfig(
            **shared_training_arguments(config, model, context, num_examples=len(train)),
            eval_strategy="epoch" if held_out else "no",
            save_strategy="no",
            max_length=None,
            disable_dropout=False,  # dropout 0 is already set unless `tuning.dropout` asks for it
        ),
        data_collator=DataCollatorForPreference(pad_token_id=pad_token_id),
        train_dataset=_pair_dataset(train),
        eval_dataset=_pair_dataset(held_out) if held_out else None,
        processing_class=tokenizer,
        callbacks=[MetricsCallback(context)],
    )
    train_in_float32(trainer.model)
    trainer.train()
    if not is_main_process():
        return StageOutput({})
    save_adapter(trainer.accelerator.unwrap_model(trainer.model), "default", context.payload_dir, base_spec=model.base)
    save_tokenizer(tokenizer, context.payload_dir)
    del trainer, peft_model, classifier
    metrics = {
        "data/train": float(len(train)),
        "data/held_out": float(len(held_out)),
        "data/dropped": float(dropped),
    }
    return _finish(config, model, inputs, context, base, tokenizer, pad_token_id, held_out, metrics)


def _finish(
    config: RewardModelConfig,
    model: ModelConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    base: Any,
    tokenizer: Any,
    pad_token_id: int,
    held_out: list[TokenizedPair],
    metrics: dict[str, float],
) -> StageOutput:
    """Measure the saved artifact and write its normalisation."""
    shared_base = SharedBase(load_causal_lm(base, model, context.device), model)
    shared_base.add_adapter("policy", inputs["policy"].path, trainable=False)
    shared_base.add_adapter("reward", context.payload_dir, trainable=False)
    raw = SharedBaseScoreModel(
        shared_base,
        ScoreHead(score_weight(context.payload_dir), ScoreNormalization()),
        role="reward",
        pad_token_id=pad_token_id,
        batch_size=config.normalization.batch_size,
    )
    notes: dict[str, Any] = {}
    if held_out:
        found, notes["reliability"] = evaluate_pairs(raw, held_out)
        metrics |= found
        logger.info(
            "held-out accuracy %.3f on %d pairs (longer response: %.3f)",
            found["eval/accuracy"], len(held_out), found["eval/length_baseline_accuracy"],
        )  # fmt: skip
    prompts = read_split(inputs["dataset"].path, "prompts", "train")
    engine = HFEngine(
        shared_base,
        pad_token_id=pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        batch_size=config.normalization.batch_size,
    )
    engine.load_policy("policy")
    normalization = _normalization(
        config.normalization,
        raw,
        engine,
        [encode_prompt(tokenizer, record.prompt) for record in prompts],
        seed=context.seed,
    )
    normalization.save(context.payload_dir)
    metrics |= {"normalization/shift": normalization.shift, "normalization/scale": normalization.scale}
    return StageOutput(metrics, notes=notes)


def _normalization(
    config: NormalizationConfig,
    raw: SharedBaseScoreModel,
    engine: HFEngine,
    prompts: list[list[int]],
    *,
    seed: int,
) -> ScoreNormalization:
    """Mean (and deviation) of the raw scores on responses of the SFT policy."""
    kept, dropped = drop_long(prompts, config.max_prompt_tokens)
    if not kept:
        raise DataError(
            f"reward_model: all {dropped} prompts are longer than "
            f"reward_model.normalization.max_prompt_tokens={config.max_prompt_tokens}; the scores are normalised on "
            f"responses to them: raise that limit"
        )
    chosen = [prompts[index] for index in kept[: config.num_prompts]]
    rollouts = engine.generate(chosen, config.sampling, seeds=row_seeds(seed, len(chosen)))
    scores = torch.tensor(
        raw.score([rollout.prompt_ids for rollout in rollouts], [rollout.response_ids for rollout in rollouts])
    )
    scale = float(scores.std(correction=0)) if config.unit_variance else 1.0
    return ScoreNormalization(float(scores.mean()), max(scale, 1e-6), len(rollouts))


def _tokenize(
    pairs: list[PreferencePair], tokenizer: Any, config: RewardModelConfig
) -> tuple[list[TokenizedPair], int]:
    """Pairs as token ids, and how many were dropped because one side is too long."""
    tokenized = []
    for pair in pairs:
        prompt, chosen = encode_episode(tokenizer, pair.prompt, pair.chosen)
        _, rejected = encode_episode(tokenizer, pair.prompt, pair.rejected)
        tokenized.append(TokenizedPair(tuple(prompt), tuple(chosen), tuple(rejected), pair.margin))
    kept = [
        pair
        for pair in tokenized
        if len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) <= config.max_length
    ]
    return kept, len(tokenized) - len(kept)


def _pair_dataset(pairs: list[TokenizedPair]) -> Dataset:
    """Pairs as TRL's trainer takes them when they are already tokenised."""
    rows: list[dict[str, Any]] = [
        {
            "chosen_ids": [*pair.prompt_ids, *pair.chosen_ids],
            "rejected_ids": [*pair.prompt_ids, *pair.rejected_ids],
        }
        for pair in pairs
    ]
    if any(pair.margin is not None for pair in pairs):
        for row, pair in zip(rows, pairs, strict=True):
            row["margin"] = pair.margin or 0.0
    return Dataset.from_list(rows)
