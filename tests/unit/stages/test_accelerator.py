"""Arguments of Hugging Face's trainers, and their log under our names."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainingArguments

from data.errors import StageError
from stages.accelerator import (
    MetricsCallback,
    is_main_process,
    num_optimizer_steps,
    num_processes,
    shared_training_arguments,
    train_in_float32,
)
from stages.contract import StageContext
from stages.metrics import MetricsWriter, read_metrics
from stages.models.config import ModelConfig
from stages.sft.config import SFTConfig

MODEL = ModelConfig(base="x", dtype="float32")


def _context(tmp_path: Path, progress: list[tuple[int, int, str]] | None = None) -> StageContext:
    seen = progress if progress is not None else []
    return StageContext(
        payload_dir=tmp_path / "payload",
        scratch_dir=tmp_path / "scratch",
        stage_dir=tmp_path,
        seed=9,
        device="cpu",
        metrics=MetricsWriter(tmp_path / "metrics.jsonl"),
        report_progress=lambda done, total, what: seen.append((done, total, what)),
    )


def _arguments(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    return shared_training_arguments(SFTConfig(**settings), MODEL, _context(tmp_path), num_examples=100)


def test_steps_are_counted_with_the_last_smaller_batch() -> None:
    # 100 examples in batches of 32: 4 steps an epoch
    assert num_optimizer_steps(SFTConfig(), 100) == 4
    assert num_optimizer_steps(SFTConfig(epochs=2.5), 100) == 10
    assert num_optimizer_steps(SFTConfig(epochs=2.1), 100) == 9, "8.4, of which the trainer makes 9"
    assert num_optimizer_steps(SFTConfig(epochs=9.0, max_steps=3), 100) == 3
    assert num_optimizer_steps(SFTConfig(epochs=0.01), 1) == 1


def test_the_global_batch_is_the_same_for_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ranks in ("1", "2", "4"):
        monkeypatch.setenv("WORLD_SIZE", ranks)
        found = _arguments(tmp_path, batch_size=32, microbatch_size=8)
        assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] * int(ranks) == 32
        assert num_processes() == int(ranks)
        assert found["ddp_backend"] == (None if ranks == "1" else "gloo")


def test_arguments_are_those_of_the_section(tmp_path: Path) -> None:
    found = _arguments(tmp_path, warmup_fraction=0.5, lr_schedule="cosine", weight_decay=0.1, max_grad_norm=0.3)
    arguments = TrainingArguments(**found)
    assert arguments.warmup_steps == 2 and arguments.lr_scheduler_type == "cosine"
    assert (arguments.weight_decay, arguments.max_grad_norm, arguments.seed) == (0.1, 0.3, 9)
    assert arguments.max_steps == -1 and not arguments.bf16 and not arguments.fp16
    assert arguments.report_to == [] and arguments.output_dir == str(tmp_path / "scratch")
    assert not arguments.logging_nan_inf_filter, "transformers would log a NaN loss as a plausible number"


def test_the_main_process_is_rank_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


def test_the_log_becomes_rows_under_our_names(tmp_path: Path) -> None:
    progress: list[tuple[int, int, str]] = []
    callback = MetricsCallback(_context(tmp_path, progress))
    state: Any = SimpleNamespace(global_step=3, max_steps=10)
    arguments: Any = None
    callback.on_log(
        arguments, state, TrainerControl(), logs={"loss": 0.5, "grad_norm": 1.0, "epoch": 0.1, "num_tokens": 7.0}
    )
    callback.on_log(arguments, state, TrainerControl(), logs={"eval_loss": 0.4, "eval_runtime": 1.0})
    callback.on_log(arguments, state, TrainerControl(), logs={"train_runtime": 1.0, "total_flos": 3.0, "epoch": 1.0})
    rows = [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in read_metrics(tmp_path / "metrics.jsonl")
    ]
    assert rows == [{"step": 3, "train/loss": 0.5, "train/grad_norm": 1.0}, {"step": 3, "eval/loss": 0.4}]
    assert progress[:2] == [(3, 10, "loss 0.500"), (3, 10, "validation")]


def test_checklist_49_a_loss_that_is_no_number_ends_the_stage(tmp_path: Path) -> None:
    callback = MetricsCallback(_context(tmp_path))
    state: Any = SimpleNamespace(global_step=3, max_steps=10)
    arguments: Any = None
    with pytest.raises(StageError, match=r"step 3: the training loss is not a number; lower `learning_rate`"):
        callback.on_log(arguments, state, TrainerControl(), logs={"loss": float("nan")})


def test_trainable_parameters_become_float32() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).bfloat16()
    model[0].requires_grad_(False)
    train_in_float32(model)
    assert model[0].weight.dtype == torch.bfloat16 and model[1].weight.dtype == torch.float32
