"""Two runs on one store at the same time: a stage is computed once, and a killed run's work is taken over."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_flow import CONFIG, ROOT, read_run, statuses

PROGRAM = (
    "import sys\n"
    "import stages.run\n"
    "from tests import stand_in\n"
    "stages.run._execute = stand_in.execute\n"
    "from pipeline.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


class Run:
    """A run in a process of its own, with stand-ins for the stages."""

    def __init__(self, folder: Path, *arguments: str, waits_in: str = "") -> None:
        self.said = folder / f"{arguments[-1]}.txt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RLHF_STAND_IN": f"{waits_in}=wait" if waits_in else ""}
        with self.said.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments], cwd=folder, env=environment, stderr=output, stdout=output
            )

    def wait_for(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not reached():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said.read_text(encoding="utf-8")
            time.sleep(0.05)

    def says(self, text: str) -> bool:
        return text in self.said.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, prefect_api: str) -> Path:
    pair = {"prompt": "The tea", "chosen": " was warm.", "rejected": " was cold."}
    row = {"prompt": "The tea", "response": " was warm."}
    (tmp_path / "demonstrations.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "preferences.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def reaches(folder: Path, run: str, stage: str) -> Callable[[], bool]:
    log = folder / "outputs" / run / stage / "log.txt"
    return lambda: log.is_file() and "stand-in for" in log.read_text(encoding="utf-8")


def flow_state(record: dict[str, Any]) -> str:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(record["prefect"]["flow_run_id"]).state
    assert state is not None
    return str(state.name)


def test_a_stage_is_computed_once_and_the_other_run_waits_and_says_so(folder: Path) -> None:
    first = Run(folder, "run", "c.yaml", "--run", "first", waits_in="sft")
    first.wait_for(reaches(folder, "first", "sft"))
    second = Run(folder, "run", "c.yaml", "--run", "second")
    waiting = f"sft: run first (process {first.process.pid}) computes the same; waiting for its result"
    second.wait_for(lambda: second.says(waiting))
    (folder / "go").touch()
    assert first.process.wait(90) == second.process.wait(90) == 0
    assert statuses(folder, "first")["sft"] == "executed" and statuses(folder, "second")["sft"] == "cached"
    artifacts = [{s["name"]: s["artifact"]["digest"] for s in read_run(folder, name)["stages"]} for name in
                 ("first", "second")]  # fmt: skip
    assert artifacts[0] == artifacts[1]
    assert second.said.read_text(encoding="utf-8").count("waiting for its result") <= 5, "one line a stage"
    assert not list((folder / "outputs" / "store" / "locks").iterdir())


def test_what_a_killed_run_computed_is_taken_over_and_the_killed_run_goes_on(folder: Path) -> None:
    first = Run(folder, "run", "c.yaml", "--run", "first", waits_in="sft")
    first.wait_for(reaches(folder, "first", "sft"))
    killed = read_run(folder, "first")
    second = Run(folder, "run", "c.yaml", "--run", "second")
    second.wait_for(lambda: second.says("waiting for its result"))
    first.process.kill()
    first.process.wait()
    assert second.process.wait(90) == 0
    assert statuses(folder, "second")["sft"] == "executed"
    assert flow_state(killed) == "Running", "nobody could tell Prefect"
    (folder / "outputs" / "first" / ".run.json.half").write_text("{", encoding="utf-8")
    # As of a process that was killed between storing its result and letting go.
    dead = folder / "outputs" / "first" / "sft"
    (dead / ".spec.json").write_text("{}", encoding="utf-8")
    (dead / "checkpoints" / "step-00000001").mkdir(parents=True)
    for stage in killed["stages"][:2]:
        (folder / "outputs" / "store" / "locks" / f"{stage['fingerprint']}.lock").touch()
    resumed = Run(folder, "resume", "first")
    assert resumed.process.wait(90) == 0, resumed.said.read_text(encoding="utf-8")
    assert statuses(folder, "first")["sft"] == "cached"
    record = read_run(folder, "first")
    assert record["status"] == "completed" and len(record["resumed"]) == 1
    assert flow_state(killed) == "Crashed" and flow_state(record) == "Completed"
    assert record["prefect"]["flow_run_id"] != killed["prefect"]["flow_run_id"]
    left = [path for path in (folder / "outputs").rglob(".*") if path.is_file() or path.name.startswith(".payload")]
    assert not (dead / "checkpoints").exists()
    assert left == [] and not list((folder / "outputs" / "store" / "locks").iterdir())
