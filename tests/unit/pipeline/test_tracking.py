"""What the tracker says to its worker, and what the worker reads and logs; W&B itself is replaced."""

import io
import json
import logging
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.config import TrackingConfig
from pipeline.tracking import start_tracker
from pipeline.tracking_worker import MetricsTail, Mirror, artifact_name, check_folder, file_state, log_row

POLICY = {"type": "policy", "path": "/store/aa", "digest": "aa", "parents": {"dataset": "dd"}}


class FakeRun:
    """Records the calls that reach a W&B run, with its rule for steps."""

    project_url = "https://wandb.example/team/rlhf"

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.step = 0
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.config: dict[str, Any] = FakeConfig(arguments.get("config", {}))
        self.summary: dict[str, Any] = {}
        self.used: list[Any] = []
        self.artifacts: list[Any] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.rows.append((step, values))
        self.step = step if step is not None else self.step

    def use_artifact(self, artifact: Any) -> None:
        self.used.append(artifact)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeConfig(dict[str, Any]):
    """`run.config`, whose `update` takes an option."""

    def update(self, values: dict[str, Any], allow_val_change: bool) -> None:  # type: ignore[override]
        super().update(values)


class FakeArtifact:
    """`wandb.Artifact`."""

    def __init__(self, name: str, type: str, metadata: dict[str, Any]) -> None:
        self.name, self.type, self.metadata = name, type, metadata
        self.folders: list[tuple[str, str]] = []

    def add_dir(self, path: str, policy: str) -> None:
        self.folders.append((path, policy))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Replace W&B; the runs that were opened."""
    opened: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        opened.append(FakeRun(**arguments))
        return opened[-1]

    fake = types.SimpleNamespace(init=init, Artifact=FakeArtifact, Settings=lambda **values: values)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return opened


def make_mirror(tmp_path: Path, mode: str) -> Mirror:
    settings = {"run": "r1", "segment": 1, "run_dir": str(tmp_path), "mode": mode, "project": "rlhf", "entity": None}
    return Mirror(settings=settings, out=io.StringIO())


def started(stage: str, metrics: Path, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "event": "stage_started", "stage": stage, "config": {"kl_coef": 0.05}, "model": {"base": "tiny"},
        "inputs": inputs or {}, "metrics_path": str(metrics), "stale": None, "prefect_flow_run_id": None,
    }  # fmt: skip


def finished(stage: str, status: str, artifact: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "event": "stage_finished", "stage": stage, "status": status, "artifact": artifact,
        "fingerprint": "ff", "metrics": {"eval/loss": 0.5, "eval/empty": None},
    }  # fmt: skip


def reports(mirror: Mirror) -> list[dict[str, Any]]:
    assert isinstance(mirror.out, io.StringIO)
    return [json.loads(line) for line in mirror.out.getvalue().splitlines()]


def test_tail_reads_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == []
    path.write_text('{"step": 1}\n{"st')
    assert tail.read() == [{"step": 1}]
    assert tail.read() == []
    with path.open("a") as file:
        file.write('ep": 2}\n{"step": 3}\n')
    assert tail.read() == [{"step": 2}, {"step": 3}]


def test_tail_starts_again_when_the_file_was_emptied(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    tail = MetricsTail(path)
    assert len(tail.read()) == 2
    path.write_text('{"step": 1}\n')
    assert tail.read() == [{"step": 1}]


def test_tail_leaves_out_rows_of_an_earlier_attempt(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    tail = MetricsTail(path, stale=file_state(path))
    assert tail.read() == []
    path.write_text("")
    assert tail.read() == []
    path.write_text('{"step": 7}\n')
    assert tail.read() == [{"step": 7}]


def test_tail_skips_a_line_that_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste{"step": 2}\n3\n{"step": 4}\n')
    assert MetricsTail(path).read() == [{"step": 1}, {"step": 4}]


def test_log_row_keeps_the_step_and_leaves_nulls_out() -> None:
    run = FakeRun()
    log_row(run, {"step": 3, "seconds": 0.5, "train/loss": 1.5, "train/grad_norm": None})
    assert run.rows == [(3, {"step": 3, "seconds": 0.5, "train/loss": 1.5})]


def test_log_row_never_goes_back_in_steps() -> None:
    """W&B drops a row whose step is below the current one."""
    run = FakeRun()
    for step in (5, 5, 1, 2):
        log_row(run, {"step": step, "train/loss": float(step)})
    assert [step for step, _ in run.rows] == [5, 5, 6, 7]
    assert [row["step"] for _, row in run.rows] == [5, 5, 1, 2]


def test_artifact_name_has_only_characters_of_wandb() -> None:
    assert artifact_name("my run/1", "sft") == "my-run-1-sft"
    assert len(artifact_name("r" * 200, "sft")) == 128


def test_check_folder_names_the_place_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file in the way")
    with pytest.raises(RuntimeError, match=r"wandb: cannot be written .*set `tracking.mode: disabled`"):
        check_folder(tmp_path / "wandb")


def test_checklist_53_a_stage_becomes_a_run_with_its_inputs_by_digest(tmp_path: Path, runs: list[FakeRun]) -> None:
    metrics = tmp_path / "metrics.jsonl"
    mirror = make_mirror(tmp_path, "offline")
    mirror.handle(started("ppo", metrics, {"policy": POLICY}))
    metrics.write_text('{"step": 1, "a": 1.0}\n')
    mirror.follow()
    mirror.handle(finished("ppo", "executed", {**POLICY, "digest": "bb"}))
    (run,) = runs
    assert run.arguments["group"] == "r1"
    assert run.arguments["job_type"] == "ppo"
    assert run.config["inputs"] == {"policy": {"type": "policy", "digest": "aa"}}
    assert run.config["stage"] == {"kl_coef": 0.05}
    assert run.config["cached"] is False
    assert run.rows[0] == (1, {"step": 1, "a": 1.0})
    assert run.summary == {"eval/loss": 0.5}
    (artifact,) = run.artifacts
    assert (artifact.name, artifact.type) == ("r1-ppo", "policy")
    assert artifact.folders == [("/store/aa", "immutable")]
    assert artifact.metadata == {
        "digest": "bb",
        "fingerprint": "ff",
        "parents": {"dataset": "dd"},
        "inputs": {"policy": {"type": "policy", "digest": "aa"}},
    }
    assert run.used == []  # W&B cannot offline
    assert run.exit_code == 0
    assert reports(mirror) == []


def test_a_cached_stage_logs_the_copied_metrics(tmp_path: Path, runs: list[FakeRun]) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "a": 1.0}\n')
    mirror = make_mirror(tmp_path, "offline")
    mirror.handle({**started("sft", metrics), "stale": file_state(metrics)})
    mirror.handle(finished("sft", "cached", POLICY))
    assert runs[0].config["cached"] is True
    assert runs[0].rows[0] == (1, {"step": 1, "a": 1.0})


def test_checklist_53_online_a_stage_uses_the_artifacts_of_earlier_stages(tmp_path: Path, runs: list[FakeRun]) -> None:
    metrics = tmp_path / "metrics.jsonl"
    foreign = {"type": "dataset", "path": "/store/dd", "digest": "dd", "parents": {}}
    mirror = make_mirror(tmp_path, "online")
    mirror.handle(started("sft", metrics, {"dataset": foreign}))
    mirror.handle(finished("sft", "executed", POLICY))
    mirror.handle(started("ppo", metrics, {"policy": POLICY, "dataset": foreign}))
    mirror.handle(finished("ppo", "executed", {**POLICY, "digest": "bb"}))
    sft, ppo = runs
    assert ppo.used == [sft.artifacts[0], sft.used[0]]
    assert sft.used[0].name == "r1-input-dataset"
    assert {"url": "https://wandb.example/team/rlhf/groups/r1"} in reports(mirror)


def test_a_failed_stage_ends_with_exit_code_1(tmp_path: Path, runs: list[FakeRun]) -> None:
    mirror = make_mirror(tmp_path, "offline")
    mirror.handle(started("sft", tmp_path / "metrics.jsonl"))
    mirror.handle(finished("sft", "failed", None))
    assert runs[0].exit_code == 1
    assert runs[0].artifacts == []


def test_a_stage_that_never_finished_is_closed_by_the_next(tmp_path: Path, runs: list[FakeRun]) -> None:
    mirror = make_mirror(tmp_path, "offline")
    mirror.handle(started("sft", tmp_path / "metrics.jsonl"))
    mirror.handle(started("sft", tmp_path / "metrics.jsonl"))
    mirror.end()
    assert [run.exit_code for run in runs] == [1, 1]


def test_a_failing_init_is_told_once_and_not_tried_again(
    tmp_path: Path, runs: list[FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def init(**arguments: Any) -> None:
        calls.append(arguments)
        raise ValueError("no way\n  to start")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    mirror = make_mirror(tmp_path, "offline")
    for stage in ("sft", "ppo"):
        mirror.handle(started(stage, tmp_path / "metrics.jsonl"))
        mirror.follow()
        mirror.handle(finished(stage, "executed", POLICY))
    mirror.end()
    assert reports(mirror) == [{"problem": "W&B: no way to start"}]
    assert len(calls) == 1


def test_without_a_server_an_online_run_goes_on_offline(
    tmp_path: Path, runs: list[FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = sys.modules["wandb"].init

    def init(**arguments: Any) -> Any:
        if arguments["settings"]["mode"] == "online":
            raise TimeoutError("connection refused")
        return working(**arguments)

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    mirror = make_mirror(tmp_path, "online")
    mirror.handle(started("sft", tmp_path / "metrics.jsonl"))
    mirror.handle(finished("sft", "executed", POLICY))
    assert [report["problem"] for report in reports(mirror)] == [
        "W&B: connection refused",
        "W&B: no server; this run is kept offline from here on",
    ]
    assert runs[0].exit_code == 0


def test_a_failing_log_ends_the_run_but_not_the_worker(tmp_path: Path, runs: list[FakeRun]) -> None:
    metrics = tmp_path / "metrics.jsonl"
    mirror = make_mirror(tmp_path, "offline")
    mirror.handle(started("sft", metrics))
    runs[0].log = None  # type: ignore[assignment,method-assign]
    metrics.write_text('{"step": 1}\n')
    mirror.follow()
    assert runs[0].exit_code == 1
    mirror.handle(finished("sft", "executed", POLICY))
    mirror.handle(started("ppo", metrics))
    mirror.handle(finished("ppo", "executed", POLICY))
    assert runs[1].exit_code == 0


def test_disabled_starts_no_process(tmp_path: Path) -> None:
    tracker = start_tracker(TrackingConfig(mode="disabled"), run="r1", run_dir=tmp_path)
    tracker.stage_started("sft", {}, {}, {}, tmp_path / "metrics.jsonl")
    tracker.stage_finished("sft", None, "failed")
    assert tracker.close() == []
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_cannot_start_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking.sys, "executable", str(tmp_path / "no-python"))
    with caplog.at_level(logging.WARNING):
        tracker = start_tracker(TrackingConfig(mode="offline"), run="r1", run_dir=tmp_path)
        tracker.stage_started("sft", {}, {}, {}, tmp_path / "metrics.jsonl")
        assert tracker.close() == []
    assert len(caplog.messages) == 1
    assert "no process could be started" in caplog.messages[0]


@pytest.mark.parametrize("body", ["import sys; sys.exit(3)", "import time; time.sleep(60)"])
def test_a_worker_that_died_or_hangs_is_given_up_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    """The pipe is broken in the one case and full in the other; neither raises nor waits."""
    script = tmp_path / "worker.py"
    script.write_text(body)
    monkeypatch.setattr(tracking.tracking_worker, "__file__", str(script))
    tracker = start_tracker(TrackingConfig(mode="offline"), run="r1", run_dir=tmp_path)
    slowest = 0.0
    for _ in range(40):
        start = time.monotonic()
        tracker.stage_started("sft", {"long": "x" * 10_000}, {}, {}, tmp_path / "metrics.jsonl")
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.01)
    assert slowest < 0.1
    start = time.monotonic()
    assert tracker.close() == []
    assert time.monotonic() - start < 5
    assert len(caplog.messages) == 1
    assert "the run goes on without W&B" in caplog.messages[0]


def test_close_ends_a_worker_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(tracking.tracking_worker, "__file__", str(script))
    monkeypatch.setitem(tracking.CLOSE_SECONDS, "offline", 0.2)
    tracker = start_tracker(TrackingConfig(mode="offline"), run="r1", run_dir=tmp_path)
    assert tracker.close() == []
    assert "did not finish within" in caplog.messages[0]


def test_the_environment_keeps_files_in_the_run_and_runs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "one-for-all")
    monkeypatch.setenv("WANDB_CONFIG_DIR", "/home/user/.config/wandb")
    offline = tracking._worker_environment("offline", tmp_path)
    assert "WANDB_RUN_ID" not in offline
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        assert offline[name].startswith(str(tmp_path))
    online = tracking._worker_environment("online", tmp_path)
    assert online["WANDB_CONFIG_DIR"] == "/home/user/.config/wandb"
