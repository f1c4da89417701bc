"""PPO without enough memory: on a GPU by the error that torch raises there, on a CPU by a limit of the system."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import StageError
from pipeline import launch
from pipeline.children import python_command
from pipeline.config import LaunchConfig
from rewards.learned import LearnedReward
from stages.ppo import trainer as trainer_module
from stages.ppo.config import PPOConfig
from stages.rollouts.hf_engine import HFEngine
from stages.run import StageSpec
from tests.unit.stages.parts import Executed, run_quietly
from tests.unit.stages.ppo.test_faults import elsewhere, failing_at
from tests.unit.stages.ppo.trainers import spy
from tests.unit.stages.test_resume import rows, scramble
from tests.unit.stages.test_training_faults import CUDA_TEXT

ROOT = Path(__file__).parents[4]
FREE = r"\(2\.31 GiB more were asked for, 1\.12 GiB of 139\.80 GiB were free\)"
SMALLER = r"lower `ppo\.microbatch_size` from 2 to 1 \(the result stays the same up to rounding\), or set `ppo\.grad"
PLACES: dict[str, tuple[Any, str, str]] = {
    "generate": (
        HFEngine,
        "generate",
        r"lower `ppo\.generate_batch_size` from 8 to 4, or lower `ppo\.rollout\.max_new",
    ),
    "score": (LearnedReward, "__call__", SMALLER),
    "experience": (trainer_module, "collect_experience", SMALLER),
}


@pytest.mark.parametrize("part", PLACES)
def test_the_part_that_ran_out_of_memory_is_named_with_its_setting_and_the_state_is_kept(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    owner, name, remedy = PLACES[part]
    spec = elsewhere(ppo_run, tmp_path)
    told = rf"^ppo: out of memory in `{part}` {FREE}; .* is needed: {remedy}.*"
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing_at(2, getattr(owner, name), torch.OutOfMemoryError(CUDA_TEXT)))
        with pytest.raises(StageError, match=told) as caught:
            run_quietly(spec)
    assert ". The state after step 1 is kept in " in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert (spec.stage_dir / "checkpoints" / "step-00000001" / "checkpoint.json").is_file()


def test_fewer_prompts_a_call_of_generate_give_the_same_policy(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the message advises: every response has a random stream of its own, and the rest is rounding."""
    config = PPOConfig.model_validate(ppo_run.spec.config | {"generate_batch_size": 3}).model_dump(mode="json")
    calls = spy(monkeypatch, HFEngine, "_generate_batch")
    found = rows(run_rows(replace(elsewhere(ppo_run, tmp_path), config=config)))
    assert [len(arguments[1]) for arguments, _, _ in calls] == [3, 3, 2] * 3
    for one, other in zip(found, rows(ppo_run.spec), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def run_rows(spec: StageSpec) -> StageSpec:
    run_quietly(spec)
    return spec


@pytest.fixture(scope="module")
def starved(ppo_run: Executed, tmp_path_factory: pytest.TempPathFactory) -> tuple[StageSpec, str]:
    """Run the stage in a process that the system gives hardly any memory for the second update; its last words."""
    folder = tmp_path_factory.mktemp("starved")
    wide = {
        "steps": 2,
        "batch_size": 64,
        "minibatch_size": 64,
        "microbatch_size": 32,
        "rollout": {"engine": "hf", "max_new_tokens": 96},
    }
    config = PPOConfig.model_validate(ppo_run.spec.config | wide).model_dump(mode="json")
    spec = replace(elsewhere(ppo_run, folder), config=config)
    spec.stage_dir.mkdir(parents=True)
    command = python_command("tests.memory_limited", "24", str(spec.stage_dir / ".spec.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_command", lambda spec, launch, path: command)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back to the system
        patch.chdir(ROOT)
        with pytest.raises(StageError) as caught:
            launch.execute(spec, LaunchConfig(mode="process", device="cpu"), lambda line: None, lambda *_: None)
    return spec, str(caught.value)


def test_a_process_under_a_limit_of_memory_says_what_to_lower(starved: tuple[StageSpec, str]) -> None:
    spec, told = starved
    start, _, rest = told.partition(" (")
    assert start == "ppo: out of memory in `update`"
    assert "MiB more were asked for); less memory or more of it is needed: lower " in rest
    assert " lower `ppo.microbatch_size` from 32 to 16 (the result stays the same up to rounding), or set " in rest
    assert "Traceback" not in told and "Its last lines" not in told
    log = (spec.stage_dir / "log.txt").read_text(encoding="utf-8")
    assert "DefaultCPUAllocator: can't allocate memory" in log and "Traceback" in log


def test_it_goes_on_once_there_is_memory(starved: tuple[StageSpec, str], tmp_path: Path) -> None:
    spec, told = starved
    assert f"The state after step 1 is kept in {spec.stage_dir / 'checkpoints' / 'step-00000001'}" in told
    before = rows(spec)
    assert [row["step"] for row in before] == [1]
    whole = replace(spec, stage_dir=tmp_path / "whole" / "ppo", store_dir=tmp_path / "store")
    scramble()
    assert run_quietly(spec)["artifact"]["digest"] == run_quietly(whole)["artifact"]["digest"]
    assert rows(spec)[0] == before[0] and rows(spec) == rows(whole)


def test_a_process_that_the_system_kills_says_so_and_what_to_lower(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a cgroup's limit does it: nothing can be said from inside."""
    command = [sys.executable, "-c", "import os; print('step 3', flush=True); os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(launch, "_command", lambda spec, launch, path: command)
    spec = elsewhere(ppo_run, tmp_path)
    with pytest.raises(StageError) as caught:
        launch.execute(spec, LaunchConfig(mode="process", device="cpu"), lambda line: None, lambda *_: None)
    told = str(caught.value)
    assert told.startswith(
        "ppo: its process ended with signal SIGKILL (the system ends processes so when memory runs out). If that was "
        "for memory, less memory or more of it is needed: lower `ppo.microbatch_size` from 2 to 1"
    )
    assert "`rlhf resume night` goes on. Its last lines:\n  | step 3" in told
