"""Ways to end a run, or something that it needs, in the middle."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from tests.chaos.flow import Execution, Target
from tests.chaos.leftovers import processes_of, still_alive

TRAINED = ("sft", "reward_model", "ppo")


@dataclass(frozen=True)
class Hit:
    """What an attack has done.

    Attributes:
        kind: What was killed, and how.
        stage: The stage at work.
        step: The last step in its metrics then.
        checkpoint: The step of its newest checkpoint; None where there was none.
        problem: What should not have happened.
    """

    kind: str
    stage: str
    step: int
    checkpoint: int | None
    problem: str | None = None


class Attack(Protocol):
    """Starts `rlhf`, does its harm, and returns when the process is over; None where the run ended before."""

    def __call__(self, target: Target, start: Callable[..., Execution]) -> Hit | None:
        """Attack one execution; `start(victim)` starts it."""


def killed_at_row(stage: str, row: int, delay: float) -> Attack:
    """SIGKILL some seconds after a stage's metrics have a row."""
    return _killed(f"SIGKILL {delay:.2f} s after step {row}", lambda target: _has_row(target, stage, row), delay)


def killed_in(stage: str, delay: float) -> Attack:
    """SIGKILL some seconds after a stage was started."""
    return _killed(f"SIGKILL {delay:.2f} s after the start", lambda target: target.stage_at_work() == stage, delay)


def killed_at(point: str, match: str, count: int) -> Attack:
    """SIGKILL at a point of `tests.chaos.victim`."""

    def attack(target: Target, start: Callable[..., Execution]) -> Hit | None:
        status = start(victim=(point, match, str(count))).finish()
        if status == 0:
            return None
        return _hit(target, f"SIGKILL at {point} {count} of {match}", _unexpected(status, -signal.SIGKILL))

    return attack


def asked_to_end(number: signal.Signals, stage: str, row: int) -> Attack:
    """SIGTERM or Ctrl-C: the run ends by itself, with its step in a checkpoint."""

    def attack(target: Target, start: Callable[..., Execution]) -> Hit | None:
        execution = start()
        if not execution.wait_until(lambda: _has_row(target, stage, row)):
            return None
        execution.process.send_signal(number)
        problem = _unexpected(execution.finish(), 128 + number)
        checkpoint = target.checkpoint(stage)
        if problem is None and (checkpoint is None or checkpoint < row):
            problem = f"no checkpoint of step {row} or later"
        told = f"goes on after step {checkpoint} of {stage}"
        if problem is None and told not in execution.tail():
            problem = f"{told!r} was not said"
        return Hit(number.name, stage, target.last_step(stage), checkpoint, problem)

    return attack


def parent_killed(stage: str, row: int) -> Attack:
    """SIGKILL of the flow's process while that of the stage lives: that one has to end, too."""

    def attack(target: Target, start: Callable[..., Execution]) -> Hit | None:
        execution = start()
        if not execution.wait_until(lambda: _has_row(target, stage, row)):
            return None
        below = [process.pid for process in psutil.Process(execution.process.pid).children(recursive=True)]
        execution.kill()
        alive = still_alive({*below, *processes_of(target.outputs)})
        return _hit(target, "SIGKILL of the parent alone", f"processes {alive} live on" if alive else None)

    return attack


def stage_killed(stage: str, row: int) -> Attack:
    """SIGKILL of the stage's process: the run has to fail, and say where it goes on."""

    def attack(target: Target, start: Callable[..., Execution]) -> Hit | None:
        execution = start()
        if not execution.wait_until(lambda: _has_row(target, stage, row)):
            return None
        for process in _running("stages.run", execution):
            process.kill()
        problem = _unexpected(execution.finish(), 1)
        if problem is None and "`rlhf resume" not in execution.tail():
            problem = "`rlhf resume` was not named"
        return Hit("SIGKILL of the stage's process", stage, target.last_step(stage), target.checkpoint(stage), problem)

    return attack


def wandb_killed(stage: str, row: int) -> Attack:
    """SIGKILL of W&B's worker and all below it: the run goes on, and says so."""

    def attack(target: Target, start: Callable[..., Execution]) -> Hit | None:
        execution = start()
        if not execution.wait_until(lambda: _has_row(target, stage, row)):
            return None
        for process in _running("tracking_worker.py", execution):
            for member in [*process.children(recursive=True), process]:
                member.kill()
        hit = _hit(target, "SIGKILL of W&B's process")
        problem = _unexpected(execution.finish(), 0)
        if problem is None and "without W&B" not in execution.tail():
            problem = "nothing was said about W&B"
        return Hit(hit.kind, hit.stage, hit.step, hit.checkpoint, problem)

    return attack


def prefect_killed(stage: str, row: int, home: Path) -> Attack:
    """SIGKILL of the Prefect server that the run has started (in `PREFECT_HOME=home`): it is started again."""

    def attack(target: Target, start: Callable[..., Execution]) -> Hit | None:
        execution = start(environment=own_server(home))
        if not execution.wait_until(lambda: _has_row(target, stage, row)):
            return None
        for process in psutil.process_iter():
            if _environment(process).get("PREFECT_HOME") == str(home) and _serves_prefect(process):
                process.kill()
        hit = _hit(target, "SIGKILL of the Prefect server")
        problem = _unexpected(execution.finish(), 0)
        return Hit(hit.kind, hit.stage, hit.step, hit.checkpoint, problem)

    return attack


def own_server(home: Path) -> dict[str, str]:
    """Environment of a run that starts a Prefect server of its own."""
    return {"PREFECT_HOME": str(home), "PREFECT_API_URL": "", "PREFECT_API_AUTH_STRING": ""}


def _killed(kind: str, reached: Callable[[Target], bool], delay: float) -> Attack:
    def attack(target: Target, start: Callable[..., Execution]) -> Hit | None:
        execution = start()
        if not execution.wait_until(lambda: reached(target)) or not execution.sleep(delay):
            return None
        if target.stage_at_work() is None:  # between two stages, or at the very end
            time.sleep(0.05)
        hit = _hit(target, kind)
        execution.kill()
        return None if hit.stage == "-" and target.record().get("status") == "completed" else hit

    return attack


def _has_row(target: Target, stage: str, row: int) -> bool:
    return target.stage_at_work() == stage and target.last_step(stage) >= row


def _hit(target: Target, kind: str, problem: str | None = None) -> Hit:
    stage = target.stage_at_work() or "-"
    return Hit(kind, stage, target.last_step(stage), target.checkpoint(stage), problem)


def _unexpected(status: int, expected: int) -> str | None:
    return None if status == expected else f"exit code {status} instead of {expected}"


def _running(module: str, execution: Execution) -> list[psutil.Process]:
    below = psutil.Process(execution.process.pid).children(recursive=True)
    return [process for process in below if any(module in part for part in process.cmdline())]


def _serves_prefect(process: psutil.Process) -> bool:
    command = " ".join(process.cmdline())
    return "prefect server start" in command or "prefect.server" in command


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        found: Mapping[str, str] = process.environ()
    except psutil.Error:
        return {}
    return found


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with some variables set, or left out where empty."""
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value or name not in changes}
