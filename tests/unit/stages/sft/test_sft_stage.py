"""The SFT stage on planted demonstrations: what is learned, what counts in the loss, what is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from transformers import AutoModelForCausalLM

from data.chat import encode_episode
from data.collators import collate_episodes
from data.errors import DataError, StageError
from data.schema import Demonstration, read_split, write_records
from stages.artifacts import combine_digests, file_digests, verify_artifact
from stages.contract import DatasetArtifact
from stages.leftovers import TOKENS
from stages.metrics import read_metrics
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.tokenizer import load_tokenizer
from stages.run import StageSpec
from stages.sft import stage as sft_stage
from stages.sft.config import SFTConfig
from tests.unit.stages.parts import Executed, executed, snapshot, stage_spec

ROOT = Path(__file__).parents[4]


def _again(run: Executed, outputs: Path, **settings: Any) -> Executed:
    config = SFTConfig.model_validate(run.spec.config | settings)
    model = ModelConfig.model_validate(run.spec.model)
    return executed(stage_spec("sft", config, model, run.spec.inputs, outputs))


def _held_out_loss(run: Executed, base: str, adapter: Path | None) -> float:
    """Mean negative log-probability of a held-out response's token, by separately loaded models."""
    model = ModelConfig.model_validate(run.spec.model)
    tokenizer = load_tokenizer(base, model)
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        causal = PeftModel.from_pretrained(causal, adapter).eval()
    total, tokens = 0.0, 0
    for record in read_split(run.spec.inputs["dataset"].path, "demonstrations", "held_out"):
        prompt, response = encode_episode(tokenizer, record.prompt, record.response)
        with torch.no_grad():
            logits = causal(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        total -= float(torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None]).sum())
        tokens += len(response)
    return total / tokens


def test_the_loss_falls_and_the_best_adapter_is_kept(sft_run: Executed) -> None:
    rows = read_metrics(sft_run.spec.stage_dir / "metrics.jsonl")
    training = [row["train/loss"] for row in rows if "train/loss" in row]
    validation = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    metrics = sft_run.manifest["metrics"]
    assert len(training) == 10 and sorted(validation) == [2, 4, 6, 8, 10]
    assert training[0] > 3.0 and training[-1] < 0.75 * training[0]
    assert metrics["eval/loss"] == min(validation.values())
    assert validation[int(metrics["eval/best_step"])] == metrics["eval/loss"]
    assert metrics["data/train"] == 100 and metrics["data/held_out"] == 28 and metrics["data/dropped"] == 0
    base = str(sft_run.spec.model["base"])
    before, after = (_held_out_loss(sft_run, base, adapter) for adapter in (None, sft_run.artifact.path))
    assert after < 0.75 * before
    # All responses are one text here, so that the trainer's mean over batches is that over tokens.
    assert after == pytest.approx(metrics["eval/loss"], rel=1e-3)


def test_the_adapter_of_the_best_validation_is_saved_not_the_last(
    sft_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = {"lr_schedule": "constant", "warmup_fraction": 0.0, "eval_every_steps": 1}
    expected = _again(sft_run, tmp_path / "two", max_steps=2, **constant)
    losses, original = [3.0, 1.0, 2.0], sft_stage.SFTTrainer.evaluation_loop

    def planted(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        output.metrics["eval_loss"] = losses.pop(0)
        return output

    monkeypatch.setattr(sft_stage.SFTTrainer, "evaluation_loop", planted)
    found = _again(sft_run, tmp_path / "three", max_steps=3, **constant)
    assert found.manifest["metrics"]["eval/best_step"] == 2 and found.manifest["metrics"]["eval/loss"] == 1.0
    assert found.artifact.digest == expected.artifact.digest


def test_checklist_02_the_prompt_is_masked_and_eos_counts(
    sft_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the very batches that TRL's trainer computes its loss from."""
    batches: list[dict[str, Any]] = []
    original = sft_stage.SFTTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batches.append({name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)})
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft_stage.SFTTrainer, "compute_loss", spy)
    _again(sft_run, tmp_path, max_steps=1, eval_every_steps=1)
    tokenizer = load_tokenizer(sft_run.artifact.path, ModelConfig.model_validate(sft_run.spec.model))
    records = read_split(sft_run.spec.inputs["dataset"].path, "demonstrations", "train")
    records += read_split(sft_run.spec.inputs["dataset"].path, "demonstrations", "held_out")
    episodes = {tuple(p + r): (p, r) for p, r in (encode_episode(tokenizer, d.prompt, d.response) for d in records)}
    rows = 0
    for batch in batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            prompt, response = episodes[tuple(ids[:length].tolist())]
            assert response[-1] == tokenizer.eos_token_id
            assert labels.tolist() == [-100] * len(prompt) + response + [-100] * (len(labels) - length)
            rows += 1
    assert rows == 10 + 28


def test_checklist_01_the_pad_is_no_eos_and_recorded(sft_run: Executed) -> None:
    tokenizer = load_tokenizer(sft_run.artifact.path, ModelConfig.model_validate(sft_run.spec.model))
    note = sft_run.manifest["notes"]["pad_token"]
    assert note["token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert note["reason"]


def test_checklist_05_tokenization_differences_are_reported(sft_run: Executed, tmp_path: Path) -> None:
    """Planted: prompts that end with a space, before which the tokenizer would cut."""
    assert sft_run.manifest["metrics"]["data/tokenization_differences"] == 0
    folder = tmp_path / "data"
    good = [Demonstration(prompt=f"The staff {n}:", response=" is kind.") for n in range(4)]
    bad = [Demonstration(prompt=f"The staff {n} ", response="is kind.") for n in range(3)]
    write_records(folder / "demonstrations" / "train.jsonl", [*good, *bad])
    write_records(folder / "demonstrations" / "held_out.jsonl", bad)
    data = DatasetArtifact(folder, combine_digests(file_digests(folder)))
    config = SFTConfig.model_validate(sft_run.spec.config | {"max_steps": 1})
    model = ModelConfig.model_validate(sft_run.spec.model)
    run = executed(stage_spec("sft", config, model, {"dataset": data}, tmp_path))
    assert run.manifest["metrics"]["data/tokenization_differences"] == 3
    assert run.manifest["metrics"]["data/train"] == 7


def test_checklist_06_long_demonstrations_are_dropped_and_counted(sft_run: Executed, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(sft_run.artifact.path, ModelConfig.model_validate(sft_run.spec.model))
    records = read_split(sft_run.spec.inputs["dataset"].path, "demonstrations", "train")
    lengths = sorted(sum(map(len, encode_episode(tokenizer, d.prompt, d.response))) for d in records)
    limit = lengths[len(lengths) // 2]
    dropped = sum(length > limit for length in lengths)
    assert 0 < dropped < len(lengths)
    some = _again(sft_run, tmp_path / "some", max_length=limit, max_steps=1).manifest["metrics"]
    assert (some["data/train"], some["data/dropped"]) == (len(lengths) - dropped, dropped)
    with pytest.raises(DataError, match=r"sft: all 100 demonstrations are longer than sft.max_length=3 tokens"):
        _again(sft_run, tmp_path, max_length=3)


def test_the_update_does_not_depend_on_the_microbatches(sft_run: Executed, tmp_path: Path) -> None:
    found = []
    for size in (1, 10):
        run = _again(sft_run, tmp_path / str(size), microbatch_size=size, max_steps=2, learning_rate=0.001)
        model = ModelConfig.model_validate(run.spec.model)
        shared = SharedBase(load_causal_lm(str(model.base), model, "cpu"), model)
        shared.add_adapter("policy", run.artifact.path, trainable=False)
        batch = collate_episodes([[20, 21, 22]], [[23, 24]], 3)
        with torch.no_grad(), shared.role("policy"):
            found.append(shared.response_logprobs(batch, temperature=1.0)[0])
        found.append(torch.stack([weight.norm() for weight in snapshot(shared.parameters("policy"))]))
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1], found[3], rtol=1e-3, atol=1e-3)


def test_checklist_49_a_loss_that_is_no_number_ends_the_stage(
    sft_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sft_stage.SFTTrainer.compute_loss

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return (loss[0] * float("nan"), *loss[1:]) if isinstance(loss, tuple) else loss * float("nan")

    monkeypatch.setattr(sft_stage.SFTTrainer, "compute_loss", broken)
    with pytest.raises(StageError, match=r"sft: step 1: the gradient is not finite; .*Lower `sft.learning_rate`"):
        _again(sft_run, tmp_path)
    assert [path.name for path in (tmp_path / "store").iterdir()] == [TOKENS], "no half-written payload is left"


def test_the_payload_holds_neither_path_time_nor_host(sft_run: Executed, rm_run: Executed, outputs: Path) -> None:
    for run in (sft_run, rm_run):
        verify_artifact(run.artifact, run.manifest["files"])
        base = run.spec.model["base"]
        for path in run.artifact.path.rglob("*"):
            text = path.read_bytes().replace(str(base).encode(), b"BASE")  # the model section names its base
            for needle in (str(outputs), str(Path(base).parent), os.uname().nodename):
                assert needle.encode() not in text, f"{path.name} holds {needle}"
        names = {path.name for path in run.artifact.path.iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
        assert not any(name.endswith((".bin", ".pt", ".md", ".pkl")) for name in names)


_RUN_BOTH = """
import json, sys, dataclasses, torch
torch.set_num_threads(1)
from stages.contract import artifact_from_json
from stages.run import StageSpec, run_stage
sft, reward_model = (StageSpec.from_json(data) for data in json.load(sys.stdin))
first = run_stage(sft, lambda *progress: None)
inputs = {**reward_model.inputs, "policy": artifact_from_json(first["artifact"])}
run_stage(dataclasses.replace(reward_model, inputs=inputs), lambda *progress: None)
"""


def test_checklist_47_digests_are_the_same_in_another_process_and_folder(
    sft_run: Executed, rm_run: Executed, tmp_path: Path
) -> None:
    """The other process has another hash seed, other folders, and the hub in reach where this one has not."""
    other_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    specs = []
    for run in (sft_run, rm_run):
        folders = {"stage_dir": tmp_path / "run" / run.spec.stage, "store_dir": tmp_path / "elsewhere"}
        specs.append(StageSpec(**{**run.spec.__dict__, **folders}).to_json())
    changed = {
        "PYTHONHASHSEED": other_seed,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "0" if constants.HF_HUB_OFFLINE else "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    finished = subprocess.run(
        [sys.executable, "-c", _RUN_BOTH],
        input=json.dumps(specs),
        env={**os.environ, **changed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for run in (sft_run, rm_run):
        manifest = json.loads((tmp_path / "run" / run.spec.stage / "manifest.json").read_text())
        assert manifest["files"] == run.manifest["files"]
        assert manifest["artifact"]["digest"] == run.artifact.digest
