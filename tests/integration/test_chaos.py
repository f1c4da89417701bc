"""Six kills and requests to end of the smoke flow, resumed to the result of the run that nobody interrupted.

`make chaos` is the long form.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.flow import Target, run_whole
from tests.chaos.plan import INLINE, Trial, short_trials
from tests.chaos.trials import Verdict, carry_out, differences
from tests.integration.conftest import ROOT

Rlhf = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, prefect_api: str, tiny_llama: Path) -> Target:
    """A run that nothing interrupts."""
    return run_whole(Target(tmp_path_factory.mktemp("whole") / "outputs", "whole", tiny_llama, INLINE))


@pytest.mark.parametrize("trial", short_trials(), ids=lambda trial: trial.name)
def test_checklist_50_killed_and_resumed_is_uninterrupted(trial: Trial, whole: Target, tmp_path: Path) -> None:
    verdict = carry_out(trial, whole, tmp_path)
    assert verdict.problems == []
    assert len(verdict.hits) == len(trial.attacks), "an attack came too late"
    target = Target(tmp_path / trial.name, trial.name, whole.base, trial.settings)
    assert len(target.record()["resumed"]) == len(trial.attacks)
    assert "going on after step" in (target.path / "ppo" / "log.txt").read_text(encoding="utf-8")


def test_the_comparison_sees_a_metric_and_an_artifact_that_differ(whole: Target, tmp_path: Path) -> None:
    """The control: it compares what a run has, not nothing with nothing."""
    record = (whole.path / "run.json").read_text(encoding="utf-8")
    copy = Target(tmp_path, "whole", whole.base, INLINE)
    for metrics in whole.path.glob("*/metrics.jsonl"):
        (copy.path / metrics.parent.name).mkdir(parents=True)
        (copy.path / metrics.parent.name / metrics.name).write_text(
            metrics.read_text(encoding="utf-8"), encoding="utf-8"
        )
    (copy.path / "run.json").write_text(record, encoding="utf-8")
    assert differences(copy, whole) == ()
    assert all(whole.rows(stage) for stage in ("sft", "reward_model", "ppo"))
    (copy.path / "run.json").write_text(record.replace(whole.digests()["ppo"], "0" * 64), encoding="utf-8")
    path = copy.path / "sft" / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("train/loss", "train/los", 1), encoding="utf-8")
    assert differences(copy, whole) == ("artifact of ppo", "metrics of sft (train/los, train/loss)")
    (copy.path / "ppo" / "metrics.jsonl").write_text("", encoding="utf-8")
    assert "metrics of ppo (the steps)" in differences(copy, whole)


def test_a_run_that_goes_on_is_not_resumed_and_a_completed_one_is_left_alone(
    rlhf: Rlhf, tmp_path: Path, tiny_llama: Path, whole: Target
) -> None:
    outputs = tmp_path / "outputs"
    busy = Target(outputs, "busy", tiny_llama)
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *busy.run_arguments()], cwd=ROOT, env=os.environ)
    try:
        deadline = time.monotonic() + 60
        while not busy.record():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        refused = rlhf("resume", "busy")
        assert refused.returncode == 2
        assert f"process {process.pid} is still at it" in refused.stderr
    finally:
        process.kill()
        process.wait()
    shown = rlhf("show", "busy")
    assert "running (its process is gone)" in shown.stdout
    unknown = rlhf("resume", "bussy")
    assert unknown.returncode == 2 and "Did you mean busy?" in unknown.stderr
    before = (whole.path / "run.json").read_bytes()
    command = [sys.executable, "-m", "pipeline", *whole.resume_arguments()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "is completed; there is nothing to go on with" in done.stdout
    assert (whole.path / "run.json").read_bytes() == before


def test_a_verdict_names_every_problem() -> None:
    verdict = Verdict("t", (), ("artifact of ppo",), (".lock",), "resume ended with 1")
    assert verdict.problems == ["artifact of ppo differs", "left: .lock", "resume ended with 1"]
