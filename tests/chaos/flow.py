"""One run of the smoke flow under attack: started, killed, resumed, and read afterwards. Knows nothing of plans."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 400.0
"""Longer than any part of the smoke flow, also beside other work."""

TIMED = ("time/", "memory/", "seconds", "rollout/tokens_per_second")
"""Metrics that depend on the clock."""

SETTINGS = (
    "launch.device=cpu", "launch.checkpoints.every_steps=1", "ppo.steps=6",
    "ppo.kl_controller={type: adaptive, target: 1.0, horizon: 100}", "ppo.normalize_scores=true",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A run's name, folder and settings.

    Attributes:
        outputs: Folder of runs; a store of its own for each target, so that nothing is taken from another.
        name: Name of the run.
        base: Folder of the tiny model.
        settings: `KEY=VALUE` beside `SETTINGS`.
    """

    outputs: Path
    name: str
    base: Path
    settings: tuple[str, ...] = ("launch.mode=inline",)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.outputs / self.name

    def run_arguments(self) -> list[str]:
        """Of `rlhf`, to start."""
        settings = [*SETTINGS, f"model.base={self.base}", *self.settings]
        options = [part for value in settings for part in ("--set", value)]
        return ["run", "configs/smoke.yaml", "--run", self.name, *options, "--output-dir", str(self.outputs)]

    def resume_arguments(self) -> list[str]:
        """Of `rlhf`, to go on."""
        return ["resume", self.name, "--output-dir", str(self.outputs)]

    def record(self) -> dict[str, Any]:
        """`run.json`, or an empty record where the run has not come so far."""
        try:
            found: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return found

    def digests(self) -> dict[str, str]:
        """Digest of each stage's artifact."""
        return {stage["name"]: stage["artifact"]["digest"] for stage in self.record()["stages"]}

    def give_stored(self, stages: Sequence[str], other: "Target") -> None:
        """Copy what the store has of some stages, artifacts and records, into another target's."""
        for stage in (entry for entry in self.record()["stages"] if entry["name"] in stages):
            for name in (stage["artifact"]["digest"], f"records/{stage['fingerprint']}"):
                shutil.copytree(self.outputs / "store" / name, other.outputs / "store" / name)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """`metrics.jsonl` of a stage, without what depends on the clock."""
        path = self.path / stage / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [{name: value for name, value in row.items() if not name.startswith(TIMED)} for row in whole]

    def stage_at_work(self) -> str | None:
        """The stage that `run.json` calls running."""
        stages = self.record().get("stages", [])
        return next((stage["name"] for stage in stages if stage["status"] == "running"), None)

    def last_step(self, stage: str) -> int:
        """The last step that the stage's metrics have."""
        return max((row.get("step", 0) for row in self.rows(stage)), default=0)

    def checkpoint(self, stage: str) -> int | None:
        """The step of the newest checkpoint."""
        names = sorted(path.name for path in (self.path / stage / "checkpoints").glob("step-*"))
        return int(names[-1].removeprefix("step-")) if names else None


class Execution:
    """A process of `rlhf` on a target."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        victim: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: Of `rlhf`.
            log: Takes what it says.
            victim: `POINT`, `MATCH`, `COUNT` of `tests.chaos.victim`, which kills the process there.
            environment: The whole environment; this one where it is left out.
        """
        module = ["tests.chaos.victim", *victim] if victim else ["pipeline"]
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module, *arguments],
                cwd=ROOT,
                env={**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "2"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Wait until the condition holds; False where the process ended before."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not reached():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"nothing happened for {LIMIT_SECONDS:.0f} s; see {self._log}")
            time.sleep(0.005)
        return True

    def sleep(self, seconds: float) -> bool:
        """Wait; False where the process ended before."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self) -> int:
        """Wait for the end."""
        try:
            return self.process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def tail(self) -> str:
        """The end of what all executions on this log have said."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])


def run_whole(target: Target) -> Target:
    """Run a target without any kill: what the others are compared with.

    Raises:
        RuntimeError: It did not complete.
    """
    target.outputs.mkdir(parents=True, exist_ok=True)
    execution = Execution(target.run_arguments(), target.outputs / f"{target.name}.txt")
    if execution.finish() != 0:
        raise RuntimeError(f"the run that nothing interrupts failed:\n{execution.tail()}")
    return target
