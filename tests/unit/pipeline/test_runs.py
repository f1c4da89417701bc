"""The folder of a run."""

import json
from pathlib import Path

import pytest

from data.errors import ConfigError
from pipeline.runs import artifact_record, create_run, list_runs, open_run
from stages.contract import PolicyArtifact


def test_names_and_files(tmp_path: Path) -> None:
    run = create_run(tmp_path, "quick start", None, "seed: 0\n", ("data", "sft"), config_path="/c/q.yaml")
    assert run.name == "quick-start-1"
    assert create_run(tmp_path, "quick start", None, "", ("data",)).name == "quick-start-2"
    assert (run.path / "config.yaml").read_text(encoding="utf-8") == "seed: 0\n"
    record = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    assert record["run"] == "quick-start-1"
    assert record["status"] == "running"
    assert [stage["status"] for stage in record["stages"]] == ["pending", "pending"]
    assert run.config_dir == Path("/c")
    assert [run.name for run in list_runs(tmp_path)] == ["quick-start-1", "quick-start-2"]


@pytest.mark.parametrize("name", ["store", "a/b", "..", "", ".hidden", "a b", "x" * 101, "end."])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="run name"):
        create_run(tmp_path, "c", name, "", ("data",))
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    create_run(tmp_path, "c", "mine", "first", ("data",))
    with pytest.raises(ConfigError, match="there is a run of this name already; give another name"):
        create_run(tmp_path, "c", "mine", "second", ("data",))
    assert (tmp_path / "mine" / "config.yaml").read_text(encoding="utf-8") == "first"


def test_unknown_run_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run is called 'x'. There are no runs there"):
        open_run(tmp_path, "x")
    create_run(tmp_path, "quickstart", None, "", ("data",))
    with pytest.raises(ConfigError, match=r"no run is called 'quickstrat-1'\. Did you mean quickstart-1\?"):
        open_run(tmp_path, "quickstrat-1")


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    run = create_run(tmp_path / "a", "c", "r", "", ("data", "sft"))
    artifact = PolicyArtifact(path=run.store_dir / ("d" * 64), digest="d" * 64, parents={"dataset": "0" * 64})
    run.update_stage("sft", status="executed", artifact=artifact_record(artifact, run.output_dir))
    assert run.record["stages"][1]["artifact"]["path"] == f"store/{'d' * 64}"
    (tmp_path / "a").rename(tmp_path / "b")
    moved = open_run(tmp_path / "b", "r").artifact("sft")
    assert moved == PolicyArtifact(
        path=tmp_path / "b" / "store" / ("d" * 64), digest="d" * 64, parents={"dataset": "0" * 64}
    )
    assert open_run(tmp_path / "b", "r").artifact("data") is None


def test_the_end_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    run = create_run(tmp_path, "c", "r", "", ("data", "sft", "ppo"))
    run.update_stage("data", status="executed")
    run.update_stage("sft", status="running")
    run.finish("cancelled")
    record = open_run(tmp_path, "r").record
    assert record["status"] == "cancelled"
    assert [stage["status"] for stage in record["stages"]] == ["executed", "failed", "skipped"]
