"""SFT and reward model with a fault in the middle: a clear end, the step before kept, and on to the same artifact."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from data.errors import StageError
from stages.reward_model.trainer import BradleyTerryTrainer
from stages.run import StageSpec
from tests.unit.stages.parts import Executed, run_quietly
from tests.unit.stages.test_resume import rows, scramble

# As torch 2.13 writes it on an H200.
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.31 GiB. GPU 0 has a total capacity of 139.80 GiB of which 1.12 GiB is "
    "free. Process 4711 has 138.67 GiB memory in use."
)
TRAINERS = {"sft_run": SFTTrainer, "rm_run": BradleyTerryTrainer}
Fault = Callable[[Any], Any]


def with_nan(loss: Any) -> Any:
    if isinstance(loss, tuple):
        return loss[0] * math.nan, *loss[1:]
    return loss * math.nan


def without_memory(loss: Any) -> Any:
    raise torch.OutOfMemoryError(CUDA_TEXT)


def failing_in(monkeypatch: pytest.MonkeyPatch, trainer: type, at_step: int, fault: Fault) -> None:
    """Let the loss of the step of this number (from 1) go wrong in training."""
    original = trainer.compute_loss  # type: ignore[attr-defined]

    def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, *args, **kwargs)
        return fault(loss) if model.training and self.state.global_step == at_step - 1 else loss

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)


def elsewhere(run: Executed, folder: Path) -> StageSpec:
    return replace(run.spec, stage_dir=folder / "night" / run.spec.stage, store_dir=folder / "store")


@pytest.mark.parametrize(
    ("name", "fault", "told"),
    [
        (
            "sft_run",
            with_nan,
            r"^sft: step 5: the gradient is not finite; the weights were left as they were\. Lower `sft\.learning_rate`"
            r" \(now 0\.02\), train in `model\.dtype: float32`, or look for an example",
        ),
        (
            "rm_run",
            without_memory,
            r"^reward_model: out of memory in `training` \(2\.31 GiB more were asked for, 1\.12 GiB of 139\.80 GiB were"
            r" free\); less memory or more of it is needed: lower `reward_model\.microbatch_size` from 4 to 2 \(the "
            r"result stays the same up to rounding\), or set `reward_model\.gradient_checkpointing: true` \(a third "
            r"more time\), or lower `reward_model\.max_length` from 1024 to 512\.",
        ),
    ],
)
def test_a_step_that_fails_keeps_the_one_before_and_the_resumed_stage_gives_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Fault, told: str
) -> None:
    whole: Executed = request.getfixturevalue(name)
    spec = elsewhere(whole, tmp_path)
    with monkeypatch.context() as patched:
        failing_in(patched, TRAINERS[name], 5, fault)
        with pytest.raises(StageError, match=told) as caught:
            run_quietly(spec)
    kept = spec.stage_dir / "checkpoints" / "step-00000004"
    assert f" The state after step 4 is kept in {kept}: `rlhf resume night` goes on from there" in str(caught.value)
    before = rows(spec)
    assert max(row["step"] for row in before) == 4 and before == rows(whole.spec)[: len(before)]
    scramble()
    assert run_quietly(spec)["artifact"]["digest"] == whole.artifact.digest
    assert rows(spec) == rows(whole.spec)


def test_a_fault_after_the_weights_have_moved_leaves_no_checkpoint_of_half_a_step(
    sft_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the optimizer step some parameters may have moved and others not."""
    steps = [0]
    original = torch.optim.AdamW.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            raise torch.OutOfMemoryError(CUDA_TEXT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    spec = elsewhere(sft_run, tmp_path)
    with pytest.raises(StageError, match=r"sft: out of memory .* It has no checkpoint yet: `rlhf resume night` starts"):
        run_quietly(spec)
    assert steps[0] == 3 and not (spec.stage_dir / "checkpoints").exists()
