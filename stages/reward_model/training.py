"""Trains the adapters of the reward model: one, or those of an ensemble one after the other.

Each training starts from the SFT adapter (on another base from a fresh one) and a head of its own. What is finished is
in each later checkpoint, so that no member is trained twice.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl import RewardConfig as TrlRewardConfig

from stages.accelerator import (
    MetricsCallback,
    is_main_process,
    num_optimizer_steps,
    shared_training_arguments,
    train_in_float32,
)
from stages.contract import StageContext
from stages.models.config import ModelConfig
from stages.models.loading import load_sequence_classifier
from stages.models.own_base import names_own_base
from stages.models.reward_members import member_folder
from stages.models.scalar_head import ScoreNormalization
from stages.models.score_heads import save_heads
from stages.models.sources import resolve_base
from stages.models.tuning import attach_adapter, load_adapter_weights, lora_config, save_adapter, score_weight
from stages.positions import check_examples, known_positions
from stages.reward_model.config import RewardModelConfig
from stages.reward_model.evaluation_pairs import TokenizedPair
from stages.reward_model.examples import pair_dataset, ranking_dataset
from stages.reward_model.rankings import rankings_of
from stages.reward_model.trainer import BradleyTerryTrainer, PlackettLuceTrainer, RankingCollator, WeightedPairCollator
from stages.seeds import derive_seed
from stages.trainer_checkpoints import restore_finished, write_finished
from stages.trainer_faults import run_trainer
from stages.training_part import TrainingPart

logger = logging.getLogger(__name__)

_MOST_SEEDS = 1 << 32
"""NumPy, which the trainers seed, too, takes no larger ones."""


def train_members(
    config: RewardModelConfig,
    model: ModelConfig,
    sft_folder: Path,
    tokenizer: Any,
    train: Sequence[TokenizedPair],
    held_out: Sequence[TokenizedPair],
    context: StageContext,
) -> None:
    """Train all adapters and save them where `stages.models.reward_members` says. Called on all ranks.

    Args:
        config: Learning settings.
        model: The shared base and adapter: the policy's.
        sft_folder: The SFT adapter.
        tokenizer: The reward model's own.
        train: Pairs to learn from.
        held_out: Pairs for the validation after each epoch.
        context: Where to write.

    Raises:
        DataError: A pair is longer than the base knows positions for.
        StageError: A training failed.
    """
    ensemble = config.ensemble
    count = ensemble.members if ensemble is not None and ensemble.of == "adapters" else 1
    num_steps = num_optimizer_steps(config, len(sequence_lengths(config, train)))
    done = restore_finished(context, context.payload_dir) if count > 1 else 0
    for number in range(done // num_steps + 1 if count > 1 else 1, count + 1):
        finished = context.payload_dir if number > 1 else None
        part = TrainingPart(number, count, num_steps, finished)
        own = context
        if number > 1:
            seed = derive_seed(context.seed, "reward_model/member", number) % _MOST_SEEDS
            own = replace(context, seed=seed)
        if count > 1:
            logger.info("member %d of %d", number, count)
            own = replace(own, scratch_dir=context.scratch_dir / str(number))
        _train(config, model, sft_folder, tokenizer, train, held_out, own, part)
        if number < count:
            write_finished(context, part.first_step + num_steps, context.payload_dir)


def sequence_lengths(config: RewardModelConfig, pairs: Sequence[TokenizedPair]) -> list[tuple[int, ...]]:
    """Lengths of the sequences of each example: a pair, or a ranking."""
    if config.loss == "plackett_luce":
        return [tuple(map(len, ranking.sequences)) for ranking in rankings_of(pairs)]
    return [
        (len(pair.prompt_ids) + len(pair.chosen_ids), len(pair.prompt_ids) + len(pair.rejected_ids)) for pair in pairs
    ]


def _train(
    config: RewardModelConfig,
    model: ModelConfig,
    sft_folder: Path,
    tokenizer: Any,
    train: Sequence[TokenizedPair],
    held_out: Sequence[TokenizedPair],
    context: StageContext,
    part: TrainingPart,
) -> None:
    """One training, from the base to the saved adapter."""
    trained = config.model or model
    peft_model = _load_classifier(config, model, tokenizer, sft_folder, context)
    longest = (
        len(pair.prompt_ids) + len(response)
        for pair in (*train, *held_out)
        for response in (pair.chosen_ids, pair.rejected_ids)
    )
    check_examples("reward_model", longest, known_positions(peft_model.config))
    trainer = _make_trainer(config, trained, context, part, peft_model, tokenizer, train, held_out)
    train_in_float32(trainer.model)
    run_trainer(trainer, "reward_model", config, trained, context, part)
    if is_main_process():
        folder = member_folder(context.payload_dir, part.number)
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), "default", folder, base_spec=trained.base)
        if config.ensemble is not None and config.ensemble.of == "heads":
            save_heads(folder, score_weight(folder), [ScoreNormalization()] * config.ensemble.members)


def _make_trainer(
    config: RewardModelConfig,
    trained: ModelConfig,
    context: StageContext,
    part: TrainingPart,
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

    lengths = sequence_lengths(config, train)
    collator = RankingCollator if on_rankings else WeightedPairCollator
    return (PlackettLuceTrainer if on_rankings else BradleyTerryTrainer)(
        lengths=lengths,
        batch_size=config.batch_size,
        label_smoothing=config.label_smoothing,
        center_coefficient=config.center_coefficient,
        model=peft_model,
        args=TrlRewardConfig(
            **shared_training_arguments(config, trained, context, num_examples=len(lengths)),
            eval_strategy="epoch" if held_out else "no",
            save_strategy="no",
            max_length=None,
            disable_dropout=False,  # dropout 0 is already set unless `tuning.dropout` asks for it
        ),
        data_collator=collator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=dataset(train),
        eval_dataset=dataset(held_out) if held_out else None,
        processing_class=tokenizer,
        callbacks=[MetricsCallback(context, part)],
    )


def _load_classifier(
    config: RewardModelConfig, model: ModelConfig, tokenizer: Any, sft_folder: Path, context: StageContext
) -> Any:
    """The model to train: from the SFT adapter on the shared base, from a fresh adapter on another one."""
    num_heads = config.ensemble.members if config.ensemble is not None and config.ensemble.of == "heads" else 1
    if config.model is None:
        peft_model = _fresh_classifier(model, tokenizer, context, num_heads)
        load_adapter_weights(peft_model, sft_folder, "default")
        return peft_model
    with names_own_base():
        return _fresh_classifier(config.model, tokenizer, context, num_heads)


def _fresh_classifier(model: ModelConfig, tokenizer: Any, context: StageContext, num_heads: int) -> Any:
    classifier = load_sequence_classifier(
        resolve_base(model, context.config_dir),
        model,
        context.device,
        tokenizer.pad_token_id,
        seed=context.seed,
        num_scores=num_heads,
    )
    return attach_adapter(classifier, lora_config(model, classifier.config, "seq_cls"), seed=context.seed)
