"""`rlhf export`: which policy, where to, what is printed and what is refused."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pipeline.cli import main
from pipeline.runs import RunFolder, artifact_record, create_run
from stages.artifacts import publish_payload
from stages.contract import PolicyArtifact
from stages.models.quiet import quiet_transformers
from tests.tiny import tiny_model_dir
from tests.unit.stages.parts import save_random_adapter

IDS = torch.tensor([[5, 6, 7, 8], [40, 41, 42, 43]])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose SFT stage left a policy; PPO did not."""
    base = tiny_model_dir("llama", tmp_path / "base")
    config = f"""
model: {{base: {base}, dtype: float32, tuning: {{rank: 4, alpha: 8}}}}
data: {{demonstrations: {{path: d.jsonl}}, preferences: {{path: p.jsonl}}}}
launch: {{device: cpu}}
"""
    run = create_run(tmp_path / "outputs", "c", "r", config, ("sft", "ppo"), config_path=str(tmp_path / "c.yaml"))
    _publish(run, "sft", base, seed=1)
    return run


def _publish(run: RunFolder, stage: str, base: Path, *, seed: int) -> None:
    payload = run.store_dir / f".payload-{seed}"
    save_random_adapter(payload, base, "causal_lm", seed=seed)
    digest, _ = publish_payload(payload, run.store_dir)
    artifact = PolicyArtifact(run.store_dir / digest, digest, {})
    run.update_stage(stage, status="executed", artifact=artifact_record(artifact, run.output_dir))  # type: ignore[arg-type]


def _export(run: RunFolder, to: Path, *options: str) -> int:
    return main(["export", run.name, "--output-dir", str(run.output_dir), "--to", str(to), *options])


def _logits(model: object) -> torch.Tensor:
    assert callable(model)
    with torch.no_grad():
        return model(IDS).logits


def test_adapter_and_merged_model_are_one_policy(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(run, tmp_path / "adapter") == 0
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    printed = capsys.readouterr().out
    assert f"the adapter of sft of r: {adapter}\n" in printed
    assert f"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules policy={adapter}\n" in printed
    assert _export(run, tmp_path / "merged", "--merge") == 0
    printed = capsys.readouterr().out
    assert printed.endswith(
        f"rounding to float32 lost 0.0% of the adapter's update\nvllm serve {tmp_path / 'merged'}\n"
    )
    with quiet_transformers():
        plain = AutoModelForCausalLM.from_pretrained(base)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    before = _logits(plain)
    expected = _logits(PeftModel.from_pretrained(plain, adapter).eval())
    torch.testing.assert_close(_logits(merged), expected, rtol=0, atol=1e-5)
    assert (expected - before).abs().max() > 0.1, "the control"


def test_the_last_policy_is_taken_and_another_by_its_stage(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(run, tmp_path / "x", "--stage", "ppo") == 2
    assert "run r: ppo left no policy; `rlhf show r` says how far it came" in capsys.readouterr().err
    _publish(run, "ppo", tmp_path / "base", seed=2)
    assert _export(run, tmp_path / "last") == 0 and _export(run, tmp_path / "sft", "--stage", "sft") == 0
    last, sft = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("last", "sft"))
    assert last != sft
    for stage, found in (("ppo", last), ("sft", sft)):
        artifact = run.artifact(stage)  # type: ignore[arg-type]
        assert artifact is not None and (artifact.path / "adapter_model.safetensors").read_bytes() == found


def test_what_is_refused_exits_with_2(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    for options in ((), ("--merge",)):
        assert _export(run, tmp_path / "full", *options) == 2
        assert "there is something already" in capsys.readouterr().err
        assert _export(run, run.store_dir / ("a" * 64), *options) == 2
        assert "an export needs a folder outside of it" in capsys.readouterr().err
    artifact = run.artifact("sft")
    assert artifact is not None
    weights = artifact.path / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert _export(run, tmp_path / "damaged") == 2
    assert "the content is not what the digest" in capsys.readouterr().err
    assert not (tmp_path / "damaged").exists()
