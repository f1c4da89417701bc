"""Requests to end: raised where nothing is lost by it, noted where a step is in work."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stages.checkpoint import Checkpoints
from stages.contract import CheckpointSchedule
from stages.interruption import Interrupted, Interruption, announcing, raising
from stages.ranks import Ranks
from stages.run import StageSpec
from tests.unit.stages.parts import Executed, run_quietly


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_is_raised_with_its_exit_code(number: signal.Signals) -> None:
    with raising(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(number)
    assert caught.value.exit_code == 128 + number
    assert isinstance(caught.value, KeyboardInterrupt)  # nobody who handles errors takes it for one


def test_the_first_request_is_noted_and_the_second_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    interruption = Interruption()
    interruption.raise_if_asked()
    with raising(), interruption.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert interruption.number == signal.SIGTERM
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert (
        capfd.readouterr().err
        == "ending: a training step in work is finished and kept first; ask again to end at once\n"
    )
    with pytest.raises(Interrupted) as caught:
        interruption.raise_if_asked()
    assert caught.value.number == signal.SIGTERM


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with announcing(), raising(), Interruption().deferred():
        pass
    with pytest.raises(RuntimeError), raising():
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_thread_leaves_the_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def inside() -> None:
        with Interruption().deferred():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_request_makes_a_checkpoint_due_and_ends_the_stage_after_it(tmp_path: Path) -> None:
    interruption = Interruption()
    checkpoints = Checkpoints(tmp_path, "f", CheckpointSchedule(), interruption)

    def save(folder: Path) -> None:
        (folder / "state").write_text("x")

    assert not checkpoints.is_due(1, Ranks())
    checkpoints.write_if_due(1, save, Ranks())
    assert checkpoints.latest() is None
    interruption.number = signal.SIGINT
    with pytest.raises(Interrupted):
        checkpoints.write_if_due(2, save, Ranks())
    found = checkpoints.latest()
    assert found is not None and found.step == 2


class _Noticing(Interruption):
    """Asked to end in the middle of the given step, as by a signal."""

    def __init__(self, spec: StageSpec, rows: int) -> None:
        super().__init__()
        self._metrics, self._rows = spec.stage_dir / "metrics.jsonl", rows

    @property
    def number(self) -> int | None:
        written = self._metrics.read_text(encoding="utf-8").count("\n") if self._metrics.exists() else 0
        return signal.SIGTERM if written >= self._rows else None

    @number.setter
    def number(self, value: int | None) -> None:
        pass


@pytest.mark.parametrize("trained", ["sft_run", "rm_run", "ppo_run"])
def test_a_stage_that_is_asked_to_end_keeps_its_step_and_goes_on_to_the_same_result(
    trained: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Executed = request.getfixturevalue(trained)
    values = {**vars(whole.spec), "stage_dir": tmp_path / "stage", "store_dir": tmp_path / "store"}
    spec = StageSpec(**values | {"checkpoints": CheckpointSchedule()})
    with monkeypatch.context() as patched:
        patched.setattr("stages.run.Interruption", lambda: _Noticing(spec, 1))
        with pytest.raises(Interrupted):
            run_quietly(spec)
    steps = [path.name for path in (spec.stage_dir / "checkpoints").iterdir()]
    # Hugging Face's trainers write a step's row after its end: with that row there, the second step is at work.
    assert steps == ["step-00000001" if trained == "ppo_run" else "step-00000002"]
    assert not list(tmp_path.rglob(".payload-*")) and not list(tmp_path.rglob(".scratch-*"))
    assert run_quietly(spec)["artifact"]["digest"] == whole.artifact.digest


def test_a_stage_s_process_ends_with_the_signal_and_leaves_no_temporary_folder(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "import stages.run as run\n"
        "def stage(spec, progress):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "run.run_stage = stage\n"
        "run.StageSpec.from_json = staticmethod(lambda data: None)\n"
        "sys.argv = ['stages.run', sys.argv[1]]\n"
        "sys.exit(run.main())\n"
    )
    (tmp_path / "spec.json").write_text("{}")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "spec.json")], env=environment, check=False)
    assert ended.returncode == 128 + signal.SIGTERM
