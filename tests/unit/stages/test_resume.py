"""A training stage that is killed after any step, and started again, leaves the artifact of an uninterrupted one."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.contract import CheckpointSchedule
from stages.metrics import MetricsWriter
from stages.run import StageSpec
from tests.unit.stages.parts import Executed, run_quietly

TRAINED = ("sft_run", "rm_run", "ppo_run")


class Killed(BaseException):
    """Handled by nobody, like SIGKILL."""


def rows(spec: StageSpec) -> list[dict[str, Any]]:
    """`metrics.jsonl` without what depends on the clock."""
    lines = (spec.stage_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    left_out = ("time/", "memory/", "seconds", "rollout/tokens_per_second")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(left_out)} for line in lines]


def killed_after(spec: StageSpec, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute until so many rows of metrics are written."""
    write, written = MetricsWriter.write, [0]

    def dying(self: MetricsWriter, step: int, values: Mapping[str, float]) -> None:
        write(self, step, values)
        written[0] += 1
        if written[0] == row:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(MetricsWriter, "write", dying)
        with pytest.raises(Killed):
            run_quietly(spec)


def scramble() -> None:
    """A process that starts has other random states than one that has trained."""
    torch.manual_seed(999)
    random.seed(999)
    np.random.seed(999)


@pytest.fixture(params=TRAINED)
def whole(request: pytest.FixtureRequest) -> Executed:
    """A training stage that nothing interrupted."""
    found: Executed = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("every_steps, step", [(1, 2), (2, 3), (2, -1)])
def test_checklist_50_killed_after_a_step_the_artifact_is_the_same(
    whole: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_steps: int, step: int
) -> None:
    """Killed when the step's row is written: the checkpoint of the step before is there, its own perhaps not."""
    expected = rows(whole.spec)
    row = len(expected) if step < 0 else next(n for n, row in enumerate(expected, 1) if row["step"] == step)
    spec = replace(
        whole.spec,
        stage_dir=tmp_path / "stage",
        store_dir=tmp_path / "store",
        checkpoints=CheckpointSchedule(every_steps=every_steps),
    )
    killed_after(spec, row, monkeypatch)
    assert any((spec.stage_dir / "checkpoints").glob("step-*"))
    scramble()
    manifest = run_quietly(spec)
    assert manifest["artifact"]["digest"] == whole.artifact.digest
    assert rows(spec) == expected
    assert manifest["metrics"].keys() == whole.manifest["metrics"].keys()
    assert not (spec.stage_dir / "checkpoints").exists()


def test_a_stage_goes_on_from_its_checkpoint_and_not_from_the_start(
    whole: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above, which a stage that always starts anew would pass."""
    expected = rows(whole.spec)
    spec = replace(
        whole.spec,
        stage_dir=tmp_path / "stage",
        store_dir=tmp_path / "store",
        checkpoints=CheckpointSchedule(every_steps=1),
    )
    last = max(row["step"] for row in expected)
    at = next(number for number, row in enumerate(expected, start=1) if row["step"] == last)
    killed_after(spec, at, monkeypatch)
    written: list[int] = []
    write = MetricsWriter.write

    def counting(self: MetricsWriter, step: int, values: Mapping[str, float]) -> None:
        written.append(step)
        write(self, step, values)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsWriter, "write", counting)
        run_quietly(spec)
    assert set(written) == {last}


def test_checklist_50_the_best_adapter_of_an_earlier_validation_is_kept(
    sft_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate so high that the last validation is worse: the artifact is the adapter of an earlier step."""
    config = {**sft_run.spec.config, "learning_rate": 0.5, "eval_every_steps": 2, "lr_schedule": "constant"}
    parts = {"config": config, "checkpoints": CheckpointSchedule(every_steps=1)}
    whole = replace(sft_run.spec, stage_dir=tmp_path / "whole", store_dir=tmp_path / "store-1", **parts)
    manifest = run_quietly(whole)
    expected = rows(whole)
    last = max(row["step"] for row in expected)
    assert manifest["metrics"]["eval/best_step"] <= last - 2, "an earlier adapter has to be the best here"
    spec = replace(whole, stage_dir=tmp_path / "cut", store_dir=tmp_path / "store-2")
    killed_after(spec, next(n for n, row in enumerate(expected, 1) if row["step"] == last), monkeypatch)
    assert run_quietly(spec)["artifact"]["digest"] == manifest["artifact"]["digest"]
