"""The GPU benchmark's lines, from made-up rows, and its bases."""

import importlib.util
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gpu import _COLUMNS, Case, line, make_cases, not_measured
from benchmarks.gpu_bases import SHAPES, make_base
from benchmarks.gpu_case import make_job


def _row(step: float, tokens: float, peak: float) -> dict[str, float]:
    parts = {f"time/{part}_seconds": 0.5 for part in ("generate", "score", "experience", "update", "sync")}
    return parts | {"time/step_seconds": step, "rollout/tokens_per_second": tokens, "memory/peak_gib": peak}


def test_a_line_has_the_largest_memory_and_the_medians() -> None:
    rows = [_row(4.0, 900.0, 20.0), _row(2.0, 1100.0, 21.5), _row(3.0, 1000.0, 21.0)]
    found = line(Case("llama-8b", "nf4", "hf"), rows, None, 32)
    name = "llama-8b, QLoRA (NF4), rollouts by hf"
    assert found == (name, "21.5", "10.67", "3.00", *["0.50"] * 5, "1000", "")
    assert line(Case("llama-8b", "none", "vllm"), rows, 4000.0, 32)[-1] == "0.25"
    assert len(found) == len(_COLUMNS) == len(not_measured(Case("llama-8b", "nf4", "hf"), "why"))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reasons = [case.missing() for case in make_cases(["llama-8b"])]
    assert reasons == [None, "vllm is not installed", "bitsandbytes is not installed"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert [case.missing() for case in make_cases(["llama-8b"])] == [None] * 3


def test_the_large_shape_has_eight_billion_weights() -> None:
    shape = SHAPES["llama-8b"]
    head = shape.hidden // shape.heads
    attention = 2 * shape.hidden * (shape.hidden + shape.kv_heads * head)
    block = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    assert shape.layers * block + 2 * shape.vocabulary * shape.hidden + shape.hidden == 8_030_261_248


def test_a_base_is_made_in_place_and_its_prompts_have_their_length(tmp_path: Path) -> None:
    make_base(SHAPES["tiny"], tmp_path, device="cpu")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.num_hidden_layers == 2 and model.config.eos_token_id == tokenizer.eos_token_id
    job = make_job("tiny", "none", "hf", "cpu", tmp_path)
    assert {len(tokenizer(prompt).input_ids) for prompt in job.prompts} == {16}
    assert tokenizer.decode(tokenizer(job.prompts[0]).input_ids) == job.prompts[0]
    assert len(set(job.prompts)) == len(job.prompts) == 32
    assert job.ppo_config.microbatch_size == 4 and job.ppo_config.minibatch_size == 8
