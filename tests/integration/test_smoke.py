"""The tiny full flow through the command line: real stages, a real Prefect server, W&B offline, real vLLM."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline.timings import Part
from tests import planted

Rlhf = Callable[..., subprocess.CompletedProcess[str]]

STAGES = ["data", "sft", "preferences", "reward_model", "ppo", "evaluation"]
GAIN = ("before", "after", "gain", "gain_low", "gain_high")
EVALUATION_METRICS = {
    *(f"{scorer}/{name}" for scorer in ("proxy", "gold") for name in GAIN),
    "kl/mean",
    *(f"win_rate/{name}" for name in ("mean", "low", "high")),
    *(f"{name}/{side}" for name in ("response_length", "distinct_2") for side in ("before", "after")),
}  # fmt: skip


def read_run(outputs: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((outputs / name / "run.json").read_text(encoding="utf-8"))
    return record


def statuses(outputs: Path, name: str) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in read_run(outputs, name)["stages"]}


def check_complete(outputs: Path, name: str) -> dict[str, dict[str, Any]]:
    """Everything that DESIGN section 3 promises of a finished run."""
    record = read_run(outputs, name)
    assert record["status"] == "completed"
    stages = {stage["name"]: stage for stage in record["stages"]}
    assert list(stages) == STAGES
    for stage_name, stage in stages.items():
        folder = outputs / name / stage_name
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["artifact"]["digest"] == stage["artifact"]["digest"]
        assert (folder / "artifact").resolve() == (outputs / "store" / stage["artifact"]["digest"]).resolve()
        assert not Path(str((folder / "artifact").readlink())).is_absolute()
        assert set(manifest["timings"]) == {"hashing", "imports", "stage", "storing"}
        assert all(seconds >= 0 for seconds in manifest["timings"].values())
    seconds = record["timings"]["seconds"]
    assert set(seconds) == set(get_args(Part))
    assert sum(stage["seconds"] for stage in stages.values()) <= seconds["stages"] <= seconds["prefect_flow"]
    assert seconds["prefect_flow"] < record["timings"]["ended"] - record["timings"]["began"]
    lineage = {role: stages[source]["artifact"]["digest"] for role, source in
               (("dataset", "data"), ("policy", "sft"), ("reward_model", "reward_model"))}  # fmt: skip
    assert stages["ppo"]["artifact"]["parents"] == lineage
    assert EVALUATION_METRICS <= stages["evaluation"]["metrics"].keys()
    assert (outputs / name / "report.html").stat().st_size > 10_000
    return stages


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files; with a short path, for there are sockets in it."""
    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_checklist_51_full_flow_then_no_stage_then_ppo_alone(
    rlhf: Rlhf, tiny_llama: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in planted.SECRETS.items():
        monkeypatch.setenv(name, value)
    base = ("--set", f"model.base={tiny_llama}", "--set", "tracking.mode=offline")
    first = rlhf("run", "configs/smoke.yaml", "--run", "one", *base)
    assert first.returncode == 0, first.stdout + first.stderr
    outputs = tmp_path / "outputs"
    stages = check_complete(outputs, "one")
    assert {stage["status"] for stage in stages.values()} == {"executed"}
    assert "wandb sync" in first.stdout + first.stderr  # offline by default: the command that uploads it

    again = rlhf("run", "configs/smoke.yaml", "--run", "two", *base)
    assert again.returncode == 0, again.stdout + again.stderr
    assert set(statuses(outputs, "two").values()) == {"cached"}

    rerun = rlhf("rerun", "ppo", "--run", "one", "--name", "three", "--set", "ppo.kl_coef=0.2", "--downstream")
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    assert statuses(outputs, "three") == {
        **dict.fromkeys(STAGES, "cached"),
        "ppo": "executed",
        "evaluation": "executed",
    }
    other = {stage["name"]: stage for stage in read_run(outputs, "three")["stages"]}
    assert other["sft"]["artifact"]["digest"] == stages["sft"]["artifact"]["digest"]
    assert other["ppo"]["artifact"]["digest"] != stages["ppo"]["artifact"]["digest"]

    for name, done in (("first", first), ("again", again), ("rerun", rerun)):
        (tmp_path / f"{name}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    assert list((outputs / "one" / "wandb").rglob("*.wandb"))  # so that there was something to look at
    assert planted.leaks(tmp_path, temporary, Path(os.environ["PREFECT_HOME"])) == []


def test_full_flow_with_qlora_and_vllm(rlhf: Rlhf, tiny_llama: Path, tmp_path: Path) -> None:
    engines = [f"{stage}.rollout.engine=vllm" for stage in ("preferences", "ppo", "evaluation")]
    settings = [
        f"model.base={tiny_llama}",
        "model.tuning={method: qlora, rank: 8, alpha: 16}",
        "tracking.mode=disabled",
        *engines,
    ]
    done = rlhf("run", "configs/smoke.yaml", "--run", "all", *(word for s in settings for word in ("--set", s)))
    assert done.returncode == 0, done.stdout + done.stderr
    check_complete(tmp_path / "outputs", "all")
    resolved = (tmp_path / "outputs/all/config.yaml").read_text(encoding="utf-8")
    assert "quantization: nf4" in resolved
    assert "method: lora" in resolved
    assert (tmp_path / "outputs/all/sft/log.txt").stat().st_size > 0
    rows = [json.loads(line) for line in (tmp_path / "outputs/all/ppo/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    # float32 on both sides: the engine samples from the very policy that was just trained (FACTS: 2e-6).
    assert max(row["rollout/logprob_delta_rms"] for row in rows) < 1e-3
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[-1]["objective/kl"] > 1e-4


def test_an_unknown_key_ends_with_code_2_and_leaves_nothing(rlhf: Rlhf, tmp_path: Path) -> None:
    done = rlhf("run", "configs/smoke.yaml", "--set", "ppo.kl_coeff=0.1")
    assert done.returncode == 2
    assert "ppo.kl_coeff: unknown key. Did you mean ppo.kl_coef?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()
