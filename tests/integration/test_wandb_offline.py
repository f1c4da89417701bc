"""W&B offline for real: what the worker leaves on disk, read back with W&B's own reader."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config import TrackingConfig
from pipeline.tracking import Tracker, start_tracker
from stages.metrics import MetricsWriter, cut_metrics
from tests.processes import has_ended

ROWS = [
    (1, {"train/loss": 2.5, "train/grad_norm": 1.0}),
    (2, {"train/loss": 2.0}),
    (4, {"train/loss": float("nan")}),
]


def inspect(folder: Path) -> list[dict[str, Any]]:
    """All records of an offline run."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_run(folder: Path) -> dict[str, Any]:
    """An offline run's identity, config, history, artifacts and exit code."""
    records = inspect(folder)
    by_type: dict[str, list[Any]] = {}
    for record in records:
        by_type.setdefault(record["type"], []).append(record[record["type"]])
    (run,) = by_type["run"]
    config = dict(run["config"]["update"])
    for update in by_type.get("config", []):
        config |= update.get("update", {})
    summary: dict[str, Any] = {}
    for update in by_type.get("summary", []):
        summary |= update.get("update", {})
    return {
        "group": run["run_group"],
        "name": run["display_name"],
        "job_type": run["job_type"],
        "config": config,
        "summary": summary,
        "history": [row["item"] for row in by_type.get("history", [])],
        "artifacts": by_type.get("artifact", []),
        "exit_code": by_type["exit"][0].get("exit_code", 0) if "exit" in by_type else None,
    }


def offline_runs(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The offline runs below a run's folder, by stage."""
    runs = [read_run(folder) for folder in sorted((run_dir / "wandb").glob("offline-run-*"))]
    return {run["job_type"]: run for run in runs}


def make_artifact(store: Path, digest: str, parents: dict[str, str]) -> dict[str, Any]:
    folder = store / digest
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(100_000))
    return {"type": "policy", "path": str(folder), "digest": digest, "parents": parents}


def run_stage(tracker: Tracker, run_dir: Path, stage: str, inputs: dict[str, Any], made: dict[str, Any]) -> None:
    metrics = run_dir / stage / "metrics.jsonl"
    tracker.stage_started(stage, {"learning_rate": 1e-3}, {"base": "tiny"}, inputs, metrics)
    with MetricsWriter(metrics) as writer:
        for step, values in ROWS:
            writer.write(step, values)
    manifest = {"artifact": made, "fingerprint": f"fingerprint-{stage}", "metrics": {"train/loss": 1.25}}
    tracker.stage_finished(stage, manifest, "executed")


def worker_of(tracker: Tracker) -> psutil.Process:
    assert tracker._process is not None
    return psutil.Process(tracker._process.pid)


def wait_for(condition: Any, seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "this should have happened by now"
        time.sleep(0.05)


def test_a_resumed_stage_is_a_new_segment_of_the_group_with_its_whole_curve(tmp_path: Path) -> None:
    run_dir = tmp_path / "outputs" / "first"
    metrics = run_dir / "ppo" / "metrics.jsonl"
    killed = start_tracker(TrackingConfig(mode="offline"), run="first", run_dir=run_dir)
    killed.stage_started("ppo", {}, {}, {}, metrics)
    with MetricsWriter(metrics) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": float(step)})
    killed.close()  # it says nothing of the stage's end, as when the flow is killed

    resumed = start_tracker(TrackingConfig(mode="offline"), run="first", run_dir=run_dir, segment=2)
    resumed.stage_started("ppo", {}, {}, {}, metrics)
    cut_metrics(metrics, 2)
    with MetricsWriter(metrics) as writer:
        for step in (3, 4):
            writer.write(step, {"train/loss": float(step)})
    resumed.stage_finished("ppo", {"fingerprint": "f", "metrics": {}}, "failed")
    resumed.close()

    found = [read_run(folder) for folder in sorted((run_dir / "wandb").glob("offline-run-*"))]
    first, second = sorted(found, key=lambda run: str(run["name"]))
    assert (first["group"], first["name"], first["config"]["segment"]) == ("first", "first-ppo", 1)
    assert (second["group"], second["name"], second["config"]["segment"]) == ("first", "first-ppo-2", 2)
    assert [row["_step"] for row in first["history"]] == [1, 2, 3]
    assert [row["_step"] for row in second["history"]] == [1, 2, 3, 4]


def test_two_stages_are_two_runs_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "flow-1")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    run_dir = tmp_path / "outputs" / "first run"
    sft = make_artifact(tmp_path / "outputs" / "store", "a" * 64, {})
    ppo = make_artifact(tmp_path / "outputs" / "store", "b" * 64, {"policy": "a" * 64})

    tracker = start_tracker(TrackingConfig(mode="auto", project="tests"), run="first run", run_dir=run_dir)
    run_stage(tracker, run_dir, "sft", {}, sft)
    run_stage(tracker, run_dir, "ppo", {"policy": sft}, ppo)
    messages = tracker.close()

    runs = offline_runs(run_dir)
    assert set(runs) == {"sft", "ppo"}
    for stage, made in (("sft", sft), ("ppo", ppo)):
        run = runs[stage]
        assert run["group"] == "first run"
        assert run["exit_code"] == 0
        config = run["config"]
        assert config["stage"] == {"learning_rate": 1e-3}
        assert config["model"] == {"base": "tiny"}
        assert (config["run"], config["stage_name"], config["cached"]) == ("first run", stage, False)
        assert config["prefect_flow_run_id"] == "flow-1"
        lines = (run_dir / stage / "metrics.jsonl").read_text().splitlines()
        for line, row in zip(lines, run["history"], strict=True):
            written = {name: value for name, value in json.loads(line).items() if value is not None}
            assert {name: value for name, value in row.items() if not name.startswith("_")} == written
            assert row["_step"] == written["step"]
        assert run["summary"]["train/loss"] == 1.25  # the stage's own final figure, not that of the last row
        (artifact,) = run["artifacts"]
        assert (artifact["name"], artifact["type"]) == (f"first-run-{stage}", "policy")
        metadata = json.loads(artifact["metadata"])
        assert metadata["digest"] == made["digest"]
        assert metadata["fingerprint"] == f"fingerprint-{stage}"
        assert metadata["parents"] == made["parents"]
        (entry,) = artifact["manifest"]["contents"]
        assert entry["local_path"] == f"{made['path']}/adapter_model.safetensors"
    assert runs["sft"]["config"]["inputs"] == {}
    assert runs["ppo"]["config"]["inputs"] == {"policy": {"type": "policy", "digest": "a" * 64}}

    (message,) = messages
    folders = sorted(map(str, (run_dir / "wandb").glob("offline-run-*")))
    assert "wandb sync " in message
    assert all(f"'{folder}'" in message for folder in folders)  # quoted: the run's name has a blank
    # Nothing of the artifact was copied, and nothing was written outside the run's folder.
    assert sum(path.stat().st_size for path in (run_dir / "wandb").rglob("*") if path.is_file()) < 100_000
    assert list(home.iterdir()) == []


def test_metrics_are_mirrored_while_the_stage_runs(tmp_path: Path) -> None:
    tracker = start_tracker(TrackingConfig(mode="offline"), run="r1", run_dir=tmp_path)
    metrics = tmp_path / "sft" / "metrics.jsonl"
    tracker.stage_started("sft", {}, {}, {}, metrics)
    with MetricsWriter(metrics) as writer:
        for step in range(1, 6):
            writer.write(step, {"train/loss": float(step)})
        wait_for(lambda: list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")))
        (folder,) = (tmp_path / "wandb").glob("offline-run-*")
        # W&B keeps the newest row open until it sees a later step.
        wait_for(lambda: len(read_run_without_exit(folder)) >= 4)
        tracker.stage_finished("sft", None, "failed")
    tracker.close()
    run = offline_runs(tmp_path)["sft"]
    assert [row["_step"] for row in run["history"]] == [1, 2, 3, 4, 5]
    assert run["exit_code"] == 1


def read_run_without_exit(folder: Path) -> list[Any]:
    try:
        return [record for record in inspect(folder) if record["type"] == "history"]
    except subprocess.CalledProcessError:
        return []  # not even its header is on disk


def test_a_killed_worker_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = start_tracker(TrackingConfig(mode="offline"), run="r1", run_dir=tmp_path)
    metrics = tmp_path / "sft" / "metrics.jsonl"
    tracker.stage_started("sft", {}, {}, {}, metrics)
    wait_for(lambda: list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")))
    worker = worker_of(tracker)
    helpers = worker.children(recursive=True)
    worker.send_signal(signal.SIGKILL)
    wait_for(lambda: tracker._process is not None and tracker._process.poll() is not None)
    with MetricsWriter(metrics) as writer:
        writer.write(1, {"train/loss": 1.0})
    tracker.stage_finished("sft", None, "failed")
    tracker.stage_started("ppo", {}, {}, {}, metrics)
    messages = tracker.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "W&B: the W&B process ended early; the run goes on without W&B"
    ]
    assert "wandb sync" in messages[0]  # what is there can still be uploaded
    wait_for(lambda: all(has_ended(helper.pid) for helper in helpers))


def test_an_unwritable_place_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb").write_text("a file where W&B's folder should be")
    artifact = make_artifact(tmp_path / "store", "a" * 64, {})
    tracker = start_tracker(TrackingConfig(mode="offline"), run="r1", run_dir=tmp_path)
    run_stage(tracker, tmp_path, "sft", {}, artifact)
    run_stage(tracker, tmp_path, "ppo", {"policy": artifact}, artifact)
    assert tracker.close() == []
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "wandb: cannot be written" in warnings[0]


def test_a_stopped_worker_never_blocks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pipe fills up; the tracker gives up instead of waiting."""
    tracker = start_tracker(TrackingConfig(mode="offline"), run="r1", run_dir=tmp_path)
    worker = worker_of(tracker)
    worker.send_signal(signal.SIGSTOP)
    slowest = 0.0
    for _ in range(30):
        start = time.monotonic()
        tracker.stage_started("sft", {"long": "x" * 10_000}, {}, {}, tmp_path / "metrics.jsonl")
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < 0.1
    tracker.close()
    assert has_ended(worker.pid)
    assert caplog.messages == ["W&B: the W&B process does not read any more; the run goes on without W&B"]


def test_the_worker_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline.config import TrackingConfig\n"
        "from pipeline.tracking import start_tracker\n"
        "run_dir = Path(sys.argv[1])\n"
        "tracker = start_tracker(TrackingConfig(mode='offline'), run='r1', run_dir=run_dir)\n"
        "tracker.stage_started('sft', {}, {}, {}, run_dir / 'metrics.jsonl')\n"
        "print(tracker._process.pid, flush=True)\n"
        "(run_dir / 'metrics.jsonl').write_text('{\"step\": 1, \"a\": 1.0}\\n')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    wait_for(lambda: has_ended(pid))
    run = offline_runs(tmp_path)["sft"]
    assert [row["a"] for row in run["history"]] == [1.0]
    assert run["exit_code"] == 1
