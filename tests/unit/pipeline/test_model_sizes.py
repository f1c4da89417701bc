"""What a base's `config.json` contradicts, by the whole message."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.loading import validate_values
from pipeline.model_sizes import size_problems

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 256}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, values in {
        "llama": LLAMA,
        "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_positions": 256},
        "seeing": {"model_type": "gemma3", "text_config": LLAMA, "num_hidden_layers": 99},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return tmp_path


def problems(folder: Path, base: str, *options: str) -> list[str]:
    values: dict[str, Any] = {"model": {"base": base}, "data": {"preferences": {"path": "x"}}}
    return list(size_problems(validate_values(values, options, "c.yaml"), folder))


@pytest.mark.parametrize("base", ["./llama", "./gpt2", "./seeing"])
def test_blocks_and_positions_that_the_base_does_not_have(folder: Path, base: str) -> None:
    assert problems(folder, base, "model.tuning.layers.last=2", "ppo.rollout.max_new_tokens=255") == []
    assert problems(folder, base, "model.tuning.layers.last=3") == [
        f"model.tuning.layers.last=3, but {base!r} has 2 blocks; at most that many can carry adapters; use "
        f"`layers: {{last: 2}}` or less, or leave `layers` out for all"
    ]
    assert problems(folder, base, "ppo.rollout.max_new_tokens=256") == [
        f"ppo.rollout.max_new_tokens=256, but {base!r} knows 256 positions for prompt and response together; a prompt "
        f"needs some of them; lower ppo.rollout.max_new_tokens to less than 256"
    ]


def test_each_stage_that_samples_and_the_reward_models_own_base_are_looked_at(folder: Path) -> None:
    options = ["reward_model.normalization.sampling.max_new_tokens=300", "evaluation.rollout.max_new_tokens=300"]
    options += ["reward_model.model={base: ./gpt2, tuning: {layers: {last: 9}}}"]
    found = problems(folder, "./llama", *options)
    assert [line.partition("=")[0] for line in found] == [
        "reward_model.model.tuning.layers.last", "evaluation.rollout.max_new_tokens",
        "reward_model.normalization.sampling.max_new_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"num_hidden_layers": "two"}', b"\xff"])
def test_what_other_checks_refuse_is_passed_over(folder: Path, content: str | bytes | None) -> None:
    path = folder / "llama" / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    options = ("model.tuning.layers.last=500", "ppo.rollout.max_new_tokens=5000")
    assert problems(folder, "./llama", *options) == problems(folder, "./nowhere", *options) == []
    assert problems(folder, "org/of-the-hub", *options) == []
