"""Records that were cut, edited by hand or overtaken: never a traceback, never another execution's figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.errors import ArtifactError
from pipeline.cli import main
from pipeline.runs import artifact_record, create_run
from pipeline.session import RunPlan
from pipeline.store import adopt, lookup, told_by
from stages.artifacts import publish_payload, publish_record, read_record, stored_artifact
from stages.contract import DatasetArtifact

FINGERPRINT = "f" * 64
DAMAGE: dict[str, str] = {
    "empty": "",
    "cut": '{"run": "r", "status": "comp',
    "a list": "[]",
    "no fields": "{}",
    "binary": "\x00\x01",
    "deep": "[" * 100_000,
}
EDITS: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "an unknown status": (("status",), "done"),
    "a process that is no number": (("pid",), "one"),
    "stages that are no list": (("stages",), {}),
    "a stage that is none": (("stages", 0, "name"), "../../etc"),
    "an artifact without a digest": (("stages", 0, "artifact"), {"type": "dataset"}),
    "a digest that leads out": (("stages", 0, "artifact", "digest"), "../../elsewhere"),
    "an artifact of no kind": (("stages", 0, "artifact", "type"), "registry"),
    "metrics that are a number": (("stages", 0, "metrics"), 3),
    "a plan that is none": (("plan",), {"forced": "all"}),
}
COMMANDS = (["show", "r"], ["show", "r", "--json"], ["resume", "r"], ["rerun", "data", "--run", "r"], ["report", "r"],
            ["export", "r", "--to", "x"], ["chat", "r"], ["gc"], ["gc", "--remove"])  # fmt: skip


def store_dataset(outputs: Path, text: str, metrics: dict[str, float]) -> DatasetArtifact:
    """Publish an artifact and its record under the one fingerprint."""
    payload = outputs / "store" / ".payload-x"
    payload.mkdir(parents=True)
    (payload / "rows.jsonl").write_text(text, encoding="utf-8")
    digest, files = publish_payload(payload, outputs / "store")
    artifact = DatasetArtifact(outputs / "store" / digest, digest)
    lines = outputs / "metrics.jsonl"
    lines.write_text(json.dumps({"step": 1, **metrics}) + "\n", encoding="utf-8")
    manifest = {"artifact": artifact.to_json(), "files": files, "metrics": metrics, "stage": "data"}
    publish_record(outputs / "store", FINGERPRINT, manifest, lines)
    lines.unlink()
    return artifact


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A run that is over, whose one artifact is in the store."""
    artifact = store_dataset(tmp_path, "rows", {"rows": 4.0})
    run = create_run(tmp_path, "c", "r", "", ("data",), plan=RunPlan().to_json())
    run.update_stage("data", status="executed", fingerprint=FINGERPRINT, artifact=artifact_record(artifact, tmp_path))
    run.finish("completed")
    run.let_go()
    return tmp_path


def check_all_commands(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in (outputs / "store").rglob("*"))
    for command in COMMANDS:
        assert main([*command, "--output-dir", str(outputs)]) == 2, command
        said = capsys.readouterr()
        assert said.err.startswith(f"{outputs / 'r' / 'run.json'}: the record of run r cannot be read ("), command
        assert "; it must be as rlhf wrote it: bring it back from a copy, or remove the run's folder" in said.err
    assert main(["runs", "--output-dir", str(outputs)]) == 0
    assert "the record of run r cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in (outputs / "store").rglob("*")) == before, "what it used is still there"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_record_that_was_cut_is_told_by_every_command_and_nothing_is_removed(
    outputs: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (outputs / "r" / "run.json").write_text(DAMAGE[damage], encoding="utf-8")
    check_all_commands(outputs, capsys)


@pytest.mark.parametrize("edit", EDITS)
def test_a_record_that_was_edited_is_told_by_every_command_and_nothing_is_removed(
    outputs: Path, capsys: pytest.CaptureFixture[str], edit: str
) -> None:
    path = outputs / "r" / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    where, value = EDITS[edit]
    inner = record
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(json.dumps(record), encoding="utf-8")
    check_all_commands(outputs, capsys)


def test_a_run_without_its_record_keeps_what_its_folder_points_to(outputs: Path) -> None:
    artifact = stored_artifact(outputs / "store", FINGERPRINT)
    assert artifact is not None
    adopt(outputs / "store", None, artifact, outputs / "r" / "data")
    (outputs / "r" / "run.json").unlink()
    assert main(["gc", "--remove", "--output-dir", str(outputs)]) == 0
    assert artifact.path.is_dir() and read_record(outputs / "store", FINGERPRINT) is not None
    shutil.rmtree(outputs / "r")
    assert main(["gc", "--remove", "--output-dir", str(outputs)]) == 0
    assert not artifact.path.is_dir() and read_record(outputs / "store", FINGERPRINT) is None


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl", "digests.json"])
@pytest.mark.parametrize("change", ["edited", "gone"])
def test_checklist_52_a_record_whose_figures_were_changed_is_no_hit(outputs: Path, name: str, change: str) -> None:
    store = outputs / "store"
    assert lookup(store, FINGERPRINT) is not None
    path = store / "records" / FINGERPRINT / name
    if change == "edited":
        path.write_text(path.read_text(encoding="utf-8").replace("4.0", "9.0").replace("a", "b"), encoding="utf-8")
    else:
        path.unlink()
    assert lookup(store, FINGERPRINT) is None
    if (change, name) == ("gone", "manifest.json"):
        assert stored_artifact(store, FINGERPRINT) is None, "as if the stage had never run"
        return
    with pytest.raises(ArtifactError, match="the record of an artifact is cut off or was changed"):
        stored_artifact(store, FINGERPRINT)


def test_a_recorded_artifact_keeps_the_figures_of_the_execution_that_made_it(outputs: Path) -> None:
    """A forced execution under the same fingerprint may make another artifact, where arithmetic is not exact."""
    store, stage_dir = outputs / "store", outputs / "r" / "data"
    old = stored_artifact(store, FINGERPRINT)
    assert old is not None
    adopt(store, told_by(store, FINGERPRINT, old, None), old, stage_dir)
    new = store_dataset(outputs, "other rows", {"rows": 5.0})
    assert told_by(store, FINGERPRINT, new, None) == store / "records" / FINGERPRINT
    assert told_by(store, FINGERPRINT, old, None) is None
    assert told_by(store, FINGERPRINT, old, stage_dir) == stage_dir
    for target in (outputs / "rerun" / "data", stage_dir):  # by another run, and by the run itself when it is resumed
        adopt(store, told_by(store, FINGERPRINT, old, stage_dir), old, target)
        assert json.loads((target / "manifest.json").read_text(encoding="utf-8"))["metrics"] == {"rows": 4.0}
        assert (target / "metrics.jsonl").read_text(encoding="utf-8") == '{"step": 1, "rows": 4.0}\n'
        assert (target / "artifact").resolve() == old.path
    (stage_dir / "manifest.json").write_text("{", encoding="utf-8")
    assert told_by(store, FINGERPRINT, old, stage_dir) is None
