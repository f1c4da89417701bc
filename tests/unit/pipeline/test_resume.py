"""`rlhf resume`: the recorded plan, what is taken as finished, and who may go on with a run."""

import json
import multiprocessing
from pathlib import Path

import pytest

from data.errors import ArtifactError, ConfigError
from pipeline.commands.resume import plan_resume
from pipeline.runs import RunFolder, artifact_record, create_run, open_run
from pipeline.session import Recorded, RunPlan
from stages.artifacts import combine_digests, file_digests
from stages.contract import DatasetArtifact, PolicyArtifact


def stored(store_dir: Path, text: str) -> DatasetArtifact:
    folder = store_dir / "new"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    digest = combine_digests(file_digests(folder))
    return DatasetArtifact(folder.rename(store_dir / digest), digest)


def half_done(outputs: Path, plan: RunPlan) -> tuple[RunFolder, DatasetArtifact]:
    run = create_run(outputs, "c", "half", "seed: 0\n", ("data", "sft", "ppo"), plan=plan.to_json())
    artifact = stored(run.store_dir, "{}")
    run.update_stage(
        "data", status="executed", fingerprint="f-data", artifact=artifact_record(artifact, run.output_dir)
    )
    run.update_stage("sft", status="running", fingerprint="f-sft")
    run.let_go()
    return open_run(outputs, "half"), artifact


def test_a_plan_survives_run_json(tmp_path: Path) -> None:
    plan = RunPlan(
        forced=frozenset({"ppo"}),
        stored=frozenset({"sft", "data"}),
        recorded={"data": Recorded(DatasetArtifact(tmp_path / "store" / "d", "d"), "f")},
        skipped=frozenset({"evaluation"}),
    )
    text = json.dumps(plan.to_json())
    assert RunPlan.from_json(json.loads(text), tmp_path / "store") == plan
    moved = RunPlan.from_json(json.loads(text), tmp_path / "elsewhere")  # with its folder of runs
    assert moved.recorded["data"].artifact.path == tmp_path / "elsewhere" / "d"
    assert RunPlan.from_json(RunPlan().to_json(), tmp_path) == RunPlan()


def test_finished_stages_are_taken_as_recorded_and_the_plan_is_kept(tmp_path: Path) -> None:
    run, artifact = half_done(tmp_path, RunPlan(forced=frozenset({"sft", "ppo"}), skipped=frozenset({"evaluation"})))
    plan = plan_resume(run)
    assert plan.recorded == {"data": Recorded(artifact, "f-data", "half")}
    assert plan.forced == {"sft", "ppo"} and plan.skipped == {"evaluation"}


def test_a_damaged_artifact_of_a_finished_stage_stops_the_resume(tmp_path: Path) -> None:
    run, artifact = half_done(tmp_path, RunPlan())
    (artifact.path / "rows.jsonl").write_text("[]", encoding="utf-8")
    with pytest.raises(ArtifactError, match="artifacts are never edited in place"):
        plan_resume(run)


def test_a_run_without_a_plan_is_of_an_earlier_version(tmp_path: Path) -> None:
    create_run(tmp_path, "c", "old", "", ("data",), config_path="/c/q.yaml")
    with pytest.raises(ConfigError, match=r"run old: .*run.json has no plan.*`rlhf run /c/q.yaml`"):
        plan_resume(open_run(tmp_path, "old"))


def _hold(path: Path, ready: "multiprocessing.synchronize.Event", end: "multiprocessing.synchronize.Event") -> None:
    run = open_run(path.parent, path.name)
    run.hold()
    ready.set()
    end.wait(60)


def test_a_run_is_held_by_one_process_until_that_ends(tmp_path: Path) -> None:
    run = create_run(tmp_path, "c", "r", "", ("data",))
    assert run.is_held()
    run.let_go()
    assert not run.is_held() and not list(tmp_path.rglob("*.lock"))
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(run.path, ready, end))
    other.start()
    assert ready.wait(60)
    again = open_run(tmp_path, "r")
    assert again.is_held()
    with pytest.raises(ConfigError, match="is still at it; wait for its end"):
        again.hold()
    other.kill()  # it cannot let go by itself
    other.join()
    assert not again.is_held()
    again.hold()
    again.let_go()


def test_looking_does_not_keep_others_from_holding(tmp_path: Path) -> None:
    run = create_run(tmp_path, "c", "r", "", ("data",))
    run.let_go()
    assert not run.is_held()
    run.hold()
    assert open_run(tmp_path, "r").is_held()
    run.let_go()


def test_the_artifact_of_a_recorded_policy_keeps_its_type(tmp_path: Path) -> None:
    plan = RunPlan(recorded={"sft": Recorded(PolicyArtifact(tmp_path / "store" / "p", "p", {"dataset": "d"}), "f")})
    assert RunPlan.from_json(plan.to_json(), tmp_path / "store") == plan
