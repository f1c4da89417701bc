"""Supervised fine-tuning: TRL's `SFTTrainer` on tokenised demonstrations, loss on response tokens only.

Tokens are made by `data.chat`, as every other stage makes them, so that prompts look the same in SFT, in the
rollouts and to the reward model.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from datasets import Dataset
from trl import SFTConfig as TrlSFTConfig
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data.batch_encoding import encode_episodes
from data.chat import count_tokenization_differences
from data.errors import DataError
from data.schema import Demonstration, read_split
from stages.accelerator import (
    MetricsCallback,
    is_main_process,
    num_optimizer_steps,
    shared_training_arguments,
    train_in_float32,
)
from stages.contract import Artifact, StageContext, StageOutput
from stages.models.config import ModelConfig
from stages.models.loading import embedding_rows, load_base_config, load_causal_lm
from stages.models.sources import resolve_base
from stages.models.tokenizer import choose_pad_token, load_tokenizer, save_tokenizer
from stages.models.tuning import attach_adapter, lora_config, save_adapter
from stages.positions import check_examples, known_positions
from stages.sft.config import SFTConfig
from stages.trainer_faults import run_trainer

logger = logging.getLogger(__name__)

_VALIDATIONS = 4


def run(config: SFTConfig, model: ModelConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageOutput:
    """Train an adapter on the demonstrations and keep the one with the least validation loss.

    Args:
        config: Learning settings.
        model: Base and adapter.
        inputs: `dataset`, the artifact of the `data` stage.
        context: Where to write.

    Returns:
        `eval/loss`, `eval/mean_token_accuracy` of the kept adapter, `train/loss` of the last step, counts;
        `data/tokenization_differences` are the training demonstrations whose text, encoded at once, has other ids.

    Raises:
        DataError: No demonstration is left after dropping those over `max_length`.
    """
    base = resolve_base(model, context.config_dir)
    load_base_config(base, model)  # first: the tokenizer would report what is wrong with it as its own
    tokenizer = load_tokenizer(base, model, context.config_dir)
    folder = inputs["dataset"].path
    demonstrations = read_split(folder, "demonstrations", "train")
    train, dropped = _tokenize(demonstrations, tokenizer, config)
    held_out, _ = _tokenize(read_split(folder, "demonstrations", "held_out"), tokenizer, config)
    if not train:
        raise DataError(
            f"sft: all {dropped} demonstrations are longer than sft.max_length={config.max_length} tokens; at least "
            f"one has to fit: raise `sft.max_length`"
        )
    language_model = load_causal_lm(base, model, context.device)
    check_examples("sft", (len(row["input_ids"]) for row in train + held_out), known_positions(language_model.config))
    used = {token for row in train + held_out for token in row["input_ids"]}
    pad = choose_pad_token(tokenizer, embedding_rows(language_model), used)
    different = count_tokenization_differences(
        tokenizer, ((row.prompt, row.response) for row in demonstrations)
    ).different
    logger.info(
        "%d demonstrations (%d dropped as too long, %d cut into other tokens where prompt and response meet), "
        "%d held out; pad token %r: %s",
        len(train), dropped, different, len(held_out), pad.token, pad.reason,
    )  # fmt: skip

    peft_model = attach_adapter(
        language_model, lora_config(model, language_model.config, "causal_lm"), seed=context.seed
    )
    trainer = SFTTrainer(
        model=peft_model,
        args=TrlSFTConfig(
            **shared_training_arguments(config, model, context, num_examples=len(train)),
            **_validation_arguments(config, len(train), validate=bool(held_out)),
            completion_only_loss=True,
            max_length=None,
        ),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=pad.token_id),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
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
    metrics |= _last_losses(trainer)
    if is_main_process():
        save_adapter(
            trainer.accelerator.unwrap_model(trainer.model), "default", context.payload_dir, base_spec=model.base
        )
        save_tokenizer(tokenizer, context.payload_dir)
    return StageOutput(metrics, notes={"pad_token": asdict(pad)})


def _tokenize(
    demonstrations: list[Demonstration], tokenizer: Any, config: SFTConfig
) -> tuple[list[dict[str, list[int]]], int]:
    """Token ids with a mask that is 1 on response tokens, EOS included; and how many were too long."""
    encoded = encode_episodes(tokenizer, [(each.prompt, (each.response,)) for each in demonstrations])
    rows = []
    for prompt, (response,) in encoded:
        rows.append(
            {
                "input_ids": [*prompt, *response],
                "completion_mask": [0] * len(prompt) + [1] * len(response),
            }
        )
    kept = [row for row in rows if len(row["input_ids"]) <= config.max_length]
    return kept, len(rows) - len(kept)


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
