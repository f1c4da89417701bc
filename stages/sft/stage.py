"""Supervised fine-tuning: TRL's `SFTTrainer` on tokenised demonstrations, loss on responses only.

Tokens are made by `data.chat`, as every other stage makes them, so that prompts look the same in SFT, in the
rollouts and to the reward model.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from datasets import Dataset
from trl import SFTConfig as TrlSFTConfig
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data.assistant_turns import LearnedRow, LearnedRows
from data.errors import DataError
from data.schema import SPLITS
from data.token_table import ids_table
from stages.accelerator import (
    MetricsCallback,
    is_main_process,
    num_optimizer_steps,
    shared_training_arguments,
    train_in_float32,
)
from stages.contract import Artifact, StageContext, StageOutput
from stages.length_order import SortsByLength, padding_metrics
from stages.models.config import ModelConfig
from stages.models.loading import embedding_rows, load_base_config, load_causal_lm
from stages.models.sources import resolve_base
from stages.models.tokenizer import choose_pad_token, load_tokenizer, save_tokenizer
from stages.models.tuning import attach_adapter, lora_config, save_adapter
from stages.positions import check_examples, known_positions
from stages.sft.config import SFTConfig
from stages.sft.packing import decide_packing, packed_collator
from stages.sft.tokenized import tokenized_split
from stages.trainer_faults import run_trainer

logger = logging.getLogger(__name__)

_VALIDATIONS = 4


class _Trainer(SortsByLength, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, with examples of like lengths in one pass. Validation is on padded rows."""

    data_collator: Any

    def __init__(self, *, eval_collator: Any, **arguments: Any) -> None:
        """Keep what pads the rows of the validation; the rest goes on."""
        self._eval_collator = eval_collator
        super().__init__(**arguments)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The loader of the validation: its figures are means over rows, which packed ones would weigh otherwise."""
        collator, self.data_collator = self.data_collator, self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator


def run(config: SFTConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageOutput:
    """Train an adapter on the demonstrations and keep the one with the least validation loss.

    Args:
        config: Learning settings.
        model: Base and adapter.
        inputs: `dataset`, the artifact of the `data` stage.
        context: Where to write.

    Returns:
        `eval/loss`, `eval/mean_token_accuracy` of the kept adapter, `train/loss` of the last step, counts; the share of
        padding that passes through the model, and what it would be unsorted (`data/padding_share`, `..._unsorted`);
        `data/tokenization_differences` are the training demonstrations whose text, encoded at once, has other ids.
        With `loss_on: all_responses` also `data/earlier_responses`, those of them whose end is not learned
        (`_without_end`), and demonstrations of which only the last response is (`data/last_response_alone`).

    Raises:
        DataError: No demonstration is left after dropping those over `max_length`.
    """
    base = resolve_base(model, context.config_dir)
    load_base_config(base, model)  # first: the tokenizer would report what is wrong with it as its own
    tokenizer = load_tokenizer(base, model, context.config_dir)
    all_responses = config.loss_on == "all_responses"
    (encoded, different), (validation, _) = (
        tokenized_split(inputs["dataset"], split, tokenizer, all_responses=all_responses, token_dir=context.token_dir)
        for split in SPLITS
    )
    train, held_out = _fitting(encoded.rows, config), _fitting(validation.rows, config)
    dropped = len(encoded.rows) - len(train)
    if not train:
        raise DataError(
            f"sft: all {dropped} demonstrations are longer than sft.max_length={config.max_length} tokens; at least "
            f"one has to fit: raise `sft.max_length`"
        )
    _tell_turns(encoded, config)
    language_model = load_causal_lm(base, model, context.device)
    check_examples("sft", (len(row.ids) for row in train + held_out), known_positions(language_model.config))
    used = {token for row in train + held_out for token in row.ids}
    pad = choose_pad_token(tokenizer, embedding_rows(language_model), used)
    logger.info(
        "%d demonstrations (%d dropped as too long, %d cut into other tokens where prompt and response meet), "
        "%d held out; pad token %r: %s",
        len(train), dropped, different, len(held_out), pad.token, pad.reason,
    )  # fmt: skip

    packing = decide_packing(language_model) if config.packing else None
    if packing is not None:
        (logger.info if packing.by == "flash_attention" else logger.warning)("sft.packing: %s", packing.reason)
    is_packed = packing is not None and packing.is_used
    padded = DataCollatorForLanguageModeling(pad_token_id=pad.token_id)
    peft_model = attach_adapter(
        language_model, lora_config(model, language_model.config, "causal_lm"), seed=context.seed
    )
    lengths = [(len(row.ids),) for row in train]
    trainer = _Trainer(
        lengths=lengths,
        batch_size=config.batch_size,
        model=peft_model,
        args=TrlSFTConfig(
            **shared_training_arguments(config, model, context, num_examples=len(train)),
            **_validation_arguments(config, len(train), validate=bool(held_out)),
            completion_only_loss=True,
            max_length=None,
        ),
        data_collator=packed_collator(pad.token_id) if is_packed else padded,
        eval_collator=padded,
        train_dataset=_dataset(train),
        eval_dataset=_dataset(held_out) if held_out else None,
        processing_class=tokenizer,
        callbacks=[MetricsCallback(context)],
    )
    train_in_float32(trainer.model)
    run_trainer(trainer, "sft", config, model, context)
    metrics = {
        "data/train": float(len(train)),
        "data/held_out": float(len(held_out)),
        "data/dropped": float(dropped),
        "data/tokenization_differences": float(different),
    }
    metrics |= padding_metrics(
        lengths, batch_size=config.batch_size, microbatch_size=config.microbatch_size, seed=context.seed
    )
    if is_packed:
        metrics["data/padding_share"] = 0.0
    if all_responses:
        metrics |= {
            "data/earlier_responses": float(encoded.num_turns),
            "data/earlier_responses_without_end": float(encoded.num_open_turns),
            "data/last_response_alone": float(encoded.num_unclear),
        }
    metrics |= _last_losses(trainer)
    if is_main_process():
        save_adapter(
            trainer.accelerator.unwrap_model(trainer.model), "default", context.payload_dir, base_spec=model.base
        )
        save_tokenizer(tokenizer, context.payload_dir)
    notes = {"pad_token": asdict(pad)} | ({"packing": asdict(packing)} if packing is not None else {})
    return StageOutput(metrics, notes=notes)


def _fitting(rows: Sequence[LearnedRow], config: SFTConfig) -> list[LearnedRow]:
    """The demonstrations that are short enough; longer ones are dropped, never cut."""
    return [row for row in rows if len(row.ids) <= config.max_length]


def _dataset(rows: Sequence[LearnedRow]) -> Dataset:
    """Demonstrations as TRL's trainer takes them when they are already tokenised."""
    return Dataset(ids_table({"input_ids": [row.ids for row in rows], "completion_mask": [row.mask for row in rows]}))


def _tell_turns(encoded: LearnedRows, config: SFTConfig) -> None:
    """What was asked for and could not be had."""
    if config.loss_on == "last_response":
        return
    logger.info("sft: %d earlier responses are learned, too", encoded.num_turns)
    if encoded.num_unclear:
        logger.warning(
            "sft: of %d of %d demonstrations only the last response is learned: the chat template writes their earlier "
            "turns in another way than as answers, or the tokenizer is a slow one, which does not say where its tokens "
            "stand", encoded.num_unclear, len(encoded.rows),
        )  # fmt: skip
    if encoded.num_open_turns:
        logger.warning(
            "sft: the ends of %d of %d earlier responses are not learned: the form of the prompts does not end a turn "
            "with the tokenizer's EOS", encoded.num_open_turns, encoded.num_turns,
        )  # fmt: skip


def _validation_arguments(config: SFTConfig, num_examples: int, *, validate: bool) -> dict[str, Any]:
    """Validate and save at the same steps, so that the best adapter can be loaded at the end."""
    if not validate:
        return {"eval_strategy": "no", "save_strategy": "no"}
    every = config.eval_every_steps or max(num_optimizer_steps(config, num_examples) // _VALIDATIONS, 1)
    return {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


def _last_losses(trainer: Any) -> dict[str, float]:
    """Final training loss and the best validation, from the trainer's log."""
    history = trainer.state.log_history
    metrics = {}
    train_losses = [row["loss"] for row in history if "loss" in row]
    if train_losses:
        metrics["train/loss"] = float(train_losses[-1])
    validations = [row for row in history if "eval_loss" in row]
    if validations:
        best = min(validations, key=lambda row: row["eval_loss"])
        metrics["eval/loss"] = float(best["eval_loss"])
        metrics["eval/mean_token_accuracy"] = float(best.get("eval_mean_token_accuracy", float("nan")))
        metrics["eval/best_step"] = float(best["step"])
    return metrics
