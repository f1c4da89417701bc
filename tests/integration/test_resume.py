"""A run that is killed and resumed leaves the artifacts of the run that was never interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT

SETTINGS = (
    "launch.mode=inline", "launch.device=cpu", "launch.checkpoints.every_steps=1", "ppo.steps=6",
    "ppo.kl_controller={type: adaptive, target: 1.0, horizon: 100}", "ppo.normalize_scores=true",
)  # fmt: skip
STAGES = ("data", "sft", "preferences", "reward_model", "ppo", "evaluation")
Rlhf = Callable[..., subprocess.CompletedProcess[str]]


def arguments(base: Path, name: str, mode: str = "inline") -> list[str]:
    settings = [*SETTINGS, f"launch.mode={mode}", f"model.base={base}"]
    return ["run", "configs/smoke.yaml", "--run", name, *(part for value in settings for part in ("--set", value))]


def digests(outputs: Path, name: str) -> dict[str, str]:
    record = json.loads((outputs / name / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "completed"
    return {stage["name"]: stage["artifact"]["digest"] for stage in record["stages"]}


def rows(outputs: Path, name: str, stage: str) -> list[dict[str, Any]]:
    lines = (outputs / name / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    left_out = ("time/", "memory/", "seconds", "rollout/tokens_per_second")
    return {name: value for name, value in row.items() if not name.startswith(left_out)}


def kill_when(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """SIGKILL as soon as the condition holds."""
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, f"ended by itself: {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, prefect_api: str, tiny_llama: Path) -> Path:
    """The outputs of a run that nothing interrupts."""
    outputs = tmp_path_factory.mktemp("whole") / "outputs"
    command = [sys.executable, "-m", "pipeline", *arguments(tiny_llama, "whole"), "--output-dir", str(outputs)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "2"}, timeout=500, check=True)
    return outputs


@pytest.mark.parametrize("mode, stage, step", [("inline", "ppo", 3), ("process", "ppo", 1), ("process", "sft", 2)])
def test_checklist_50_killed_and_resumed_is_uninterrupted(
    rlhf: Rlhf, tmp_path: Path, uninterrupted: Path, tiny_llama: Path, mode: str, stage: str, step: int
) -> None:
    outputs = tmp_path / "outputs"
    command = [sys.executable, "-m", "pipeline", *arguments(tiny_llama, "cut", mode), "--output-dir", str(outputs)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "2"})
    checkpoint = outputs / "cut" / stage / "checkpoints" / f"step-{step:08d}"
    kill_when(process, checkpoint.is_dir)
    assert rlhf("show", "cut").returncode == 0
    finished = rlhf("resume", "cut")
    assert finished.returncode == 0, finished.stderr
    assert digests(outputs, "cut") == digests(uninterrupted, "whole")
    resumed, whole = rows(outputs, "cut", stage), rows(uninterrupted, "whole", stage)
    assert [without_times(row) for row in resumed] == [without_times(row) for row in whole]
    if stage == "ppo":
        assert "going on after step" in (outputs / "cut" / "ppo" / "log.txt").read_text(encoding="utf-8")
    assert not (outputs / "cut" / stage / "checkpoints").exists()
    finished = rlhf("resume", "cut")
    assert finished.returncode == 0 and "is completed" in finished.stdout


def test_a_run_that_goes_on_is_not_resumed(rlhf: Rlhf, tmp_path: Path, tiny_llama: Path) -> None:
    outputs = tmp_path / "outputs"
    command = [sys.executable, "-m", "pipeline", *arguments(tiny_llama, "busy"), "--output-dir", str(outputs)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (outputs / "busy" / "run.json").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        refused = rlhf("resume", "busy")
        assert refused.returncode == 2
        assert f"process {process.pid} is still at it" in refused.stderr
    finally:
        process.kill()
        process.wait()
    unknown = rlhf("resume", "bussy")
    assert unknown.returncode == 2 and "Did you mean busy?" in unknown.stderr
