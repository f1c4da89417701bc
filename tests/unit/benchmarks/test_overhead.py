"""The split of a run's time, and the tables of `benchmarks.overhead`."""

from pathlib import Path
from typing import Any, get_args

import pytest

from benchmarks.commands import measured_environment, mirror_kind
from benchmarks.overhead_account import _RECORDED, Account, account, account_table, repeats_table, rewriting_seconds
from pipeline.timings import Part


def record(**seconds: float) -> dict[str, Any]:
    return {"timings": {"began": 1002.0, "ended": 1095.0, "seconds": seconds}}


def manifest(hashing: float, imports: float, stage: float, storing: float) -> dict[str, Any]:
    return {"timings": {"hashing": hashing, "imports": imports, "stage": stage, "storing": storing}}


def test_the_account_by_hand() -> None:
    found = account(
        record(
            server_start=5.0, server_stop=1.0, prefect_import=3.0, prefect_flow=80.0, prefect_drain=1.5, stages=76.0,
            wandb_start=0.1, wandb_messages=0.2, wandb_close=0.5, hashing=1.0, storing=0.3, report=0.4,
        ),
        {"sft": manifest(0.1, 6.0, 40.0, 0.2), "ppo": manifest(0.1, 2.0, 25.0, 0.2)},
        spawned=1000.0,
        wall=97.0,
    )  # fmt: skip
    assert found.stages == {"sft": 40.0, "ppo": 25.0}
    assert found.own == 65.0
    # 3 import + (80 - 76) around the stages + 1.5.
    assert found.parts["Prefect"] == pytest.approx(8.5)
    assert found.parts["W&B"] == pytest.approx(0.8)
    # 1 + 0.3 told by the flow, 0.1 + 0.1 + 0.2 + 0.2 by the stages.
    assert found.parts["hashing and storing"] == pytest.approx(1.9)
    # 2 until the run began, 8 imports of stages, 2 after its end; of the stages' 76 seconds 1.5 are told above and
    # 73.6 by the manifests, so 0.9 are theirs too.
    assert found.parts["process starts and imports"] == pytest.approx(2 + 8 + 2 + 0.9)
    assert found.parts["report"] == 0.4
    assert (found.server_start, found.server_stop) == (5.0, 1.0)
    # Nothing is counted twice or left out.
    assert found.own + found.overhead + 5.0 + 1.0 == pytest.approx(97.0)
    assert found.parts["other"] == pytest.approx(97 - 6 - 65 - 8.5 - 0.8 - 1.9 - 12.9 - 0.4)
    assert found.without_server_start == 92.0


def test_a_run_from_the_store_has_no_own_work() -> None:
    found = account(record(prefect_flow=3.0, stages=1.0, hashing=0.9), {}, spawned=1001.0, wall=95.0)
    assert found.own == 0
    assert found.overhead == pytest.approx(95.0)
    assert "-" in account_table(found)


def test_all_recorded_parts_are_read() -> None:
    assert set(_RECORDED) == set(get_args(Part))


def test_percent_is_of_the_own_work() -> None:
    found = Account(wall=60.0, stages={"ppo": 50.0}, parts=dict.fromkeys(
        ("Prefect", "W&B", "hashing and storing", "process starts and imports", "report", "other"), 0.5
    ), server_start=6.0, server_stop=1.0)  # fmt: skip
    lines = account_table(found).splitlines()
    assert "| Prefect | 0.50 | 1.00 |" in lines
    assert "| **overhead** | 3.00 | 6.00 |" in lines


def test_a_goal_is_met_by_the_median() -> None:
    lines = repeats_table({"a": [1.0, 9.0, 2.0], "b": [3.0, 1.0, 3.0]}, {"a": 2.0, "b": 2.5}).splitlines()
    assert lines[2] == "| a | 3 | 1.00 | 2.00 | 9.00 | 2 | yes |"
    assert lines[3] == "| b | 3 | 1.00 | 3.00 | 3.00 | 2.5 | no |"


def test_rewriting_counts_every_byte_once_and_leaves_nothing(tmp_path: Path) -> None:
    payload, scratch = tmp_path / "payload", tmp_path / "scratch"
    (payload / "inner").mkdir(parents=True)
    scratch.mkdir()
    (payload / "a").write_bytes(b"x" * 1000)
    (payload / "inner" / "b").write_bytes(b"y" * 24)
    size, seconds = rewriting_seconds([payload], scratch)
    assert size == 1024
    assert seconds > 0
    assert list(scratch.iterdir()) == []


def test_mirrors_are_told_from_stages() -> None:
    assert mirror_kind("/usr/bin/python -m prefect server start") == "Prefect server"
    assert mirror_kind("/usr/bin/python -P /x/pipeline/tracking_worker.py {}") == "W&B"
    assert mirror_kind("/usr/bin/python -m stages.run spec.json") is None


def test_measured_runs_have_their_own_server_and_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    found = measured_environment(tmp_path)
    assert "PREFECT_API_URL" not in found
    assert "WANDB_API_KEY" not in found
    assert found["PREFECT_HOME"] == str(tmp_path)
