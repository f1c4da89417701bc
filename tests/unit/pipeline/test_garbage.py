"""What no run uses is listed and removed; everything else stays."""

import json
from pathlib import Path

import pytest

from data.errors import ConfigError
from pipeline.cli import main
from pipeline.garbage import find_garbage, no_run_at_work
from pipeline.locks import release, try_lock
from pipeline.runs import GC_LOCK, RunFolder, artifact_record, create_run, open_run
from pipeline.session import Recorded, RunPlan
from stages.artifacts import combine_digests, file_digests, publish_payload, publish_record
from stages.contract import DatasetArtifact
from stages.leftovers import payload_prefix

FINGERPRINTS = {name: name[0] * 64 for name in ("used", "plan", "none", "gone")}


def store_artifact(outputs: Path, name: str) -> DatasetArtifact:
    """An artifact of its own content, with a record under a fingerprint of its own."""
    store = outputs / "store"
    payload = store / ".payload-x"
    payload.mkdir(parents=True)
    (payload / "rows.jsonl").write_text(name * 1000, encoding="utf-8")
    digest, files = publish_payload(payload, store)
    artifact = DatasetArtifact(store / digest, digest)
    metrics = outputs / "metrics.jsonl"
    metrics.write_text("{}\n", encoding="utf-8")
    manifest = {"artifact": artifact.to_json(), "files": files}
    publish_record(store, FINGERPRINTS[name], manifest, metrics)
    metrics.unlink()
    return artifact


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two runs that are over, artifacts that they use and do not use, and what a killed process left."""
    used, planned = store_artifact(tmp_path, "used"), store_artifact(tmp_path, "plan")
    store_artifact(tmp_path, "none")
    gone = store_artifact(tmp_path, "gone")
    gone.path.chmod(0o755)
    for file in gone.path.iterdir():
        file.unlink()
    gone.path.rmdir()
    finished = create_run(tmp_path, "c", "finished", "", ("data",))
    finished.update_stage("data", status="executed", artifact=artifact_record(used, tmp_path))
    plan = RunPlan(recorded={"data": Recorded(planned, FINGERPRINTS["plan"])})
    killed = create_run(tmp_path, "c", "killed", "", ("data", "sft"), plan=plan.to_json())
    for run in (finished, killed):
        run.let_go()
    for name in (".scratch-a/x", "checkpoints/.writing-00000002/x", "checkpoints/step-00000001/x", ".spec.json"):
        path = tmp_path / "killed" / "sft" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
    (tmp_path / "killed" / ".run.json.half").write_text("{", encoding="utf-8")
    (tmp_path / "store" / f"{payload_prefix('d' * 64)}y").mkdir()
    tokens = tmp_path / "store" / "tokens"
    tokens.mkdir()
    for digest in (used.digest, planned.digest, gone.digest):
        (tokens / f"{digest}-{'e' * 32}.npz").write_bytes(b"x")
    (tokens / f"{used.digest}-{'f' * 32}.npz.7.writing").write_bytes(b"x")
    (tmp_path / "store" / "locks").mkdir()
    (tmp_path / "store" / "locks" / f"{'d' * 64}.lock").write_text("run killed (process 1)", encoding="utf-8")
    return tmp_path


def paths(outputs: Path) -> list[str]:
    return [str(entry.path.relative_to(outputs)) for entry in find_garbage(outputs)]


def digest_of(name: str) -> str:
    import hashlib

    return combine_digests({"rows.jsonl": hashlib.sha256(name.encode() * 1000).hexdigest()})


def unused_digest() -> str:
    return digest_of("none")


def expected() -> set[str]:
    return {
        f"store/{unused_digest()}", f"store/records/{FINGERPRINTS['none']}", f"store/records/{FINGERPRINTS['gone']}",
        f"store/{payload_prefix('d' * 64)}y", f"store/locks/{'d' * 64}.lock", "killed/sft/.scratch-a",
        "killed/sft/checkpoints/.writing-00000002", "killed/sft/.spec.json", "killed/.run.json.half",
        f"store/tokens/{digest_of('gone')}-{'e' * 32}.npz",
        f"store/tokens/{digest_of('used')}-{'f' * 32}.npz.7.writing",
    }  # fmt: skip


def test_what_no_run_uses_is_listed_and_nothing_is_removed(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(paths(outputs)) == expected()
    before = file_digests(outputs)
    assert main(["gc", "--output-dir", str(outputs)]) == 0
    said = capsys.readouterr().out
    assert "11 unused, 0.0 MiB; nothing was removed: `rlhf gc --remove` does" in said
    assert f"artifact   0.0 MiB  store/{unused_digest()}" in said
    assert file_digests(outputs) == before


def test_remove_removes_that_and_nothing_else(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(file_digests(outputs))
    assert main(["gc", "--remove", "--output-dir", str(outputs)]) == 0
    assert "removed 11 unused files and folders" in capsys.readouterr().out
    gone = before - set(file_digests(outputs))
    assert all(any(name == path or name.startswith(f"{path}/") for path in expected()) for name in gone)
    assert paths(outputs) == [] and not (outputs / GC_LOCK).exists()
    assert (outputs / "killed" / "sft" / "checkpoints" / "step-00000001" / "x").is_file()
    assert main(["gc", "--output-dir", str(outputs)]) == 0
    assert "all is used by the 2 runs there" in capsys.readouterr().out


def test_a_run_at_work_keeps_everything_of_its_own_and_forbids_removing(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(outputs, "killed")
    run.hold()
    computing = try_lock(outputs / "store" / "locks" / f"{'d' * 64}.lock", "run killed (process 2)")
    assert computing is not None
    unused = ("store/records", "store/" + unused_digest(), "store/tokens/" + digest_of("gone"))
    assert set(paths(outputs)) == {path for path in expected() if path.startswith(unused)}
    assert main(["gc", "--remove", "--output-dir", str(outputs)]) == 2
    assert "killed is at work, and may be about to use what is unused now" in capsys.readouterr().err
    assert (outputs / "store" / unused_digest()).is_dir() and not (outputs / GC_LOCK).exists()
    release(computing, outputs / "store" / "locks" / f"{'d' * 64}.lock")
    run.let_go()


def test_a_run_that_starts_waits_until_the_removal_is_over(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    def look(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            context.__exit__(None, None, None)

    context = no_run_at_work(outputs)
    context.__enter__()
    with pytest.raises(ConfigError, match="another `rlhf gc --remove` is at work"), no_run_at_work(outputs):
        raise AssertionError
    monkeypatch.setattr("pipeline.runs.time.sleep", look)
    started: RunFolder = create_run(outputs, "c", "new", "", ("data",))
    assert len(waited) == 3
    started.let_go()


def test_an_empty_or_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "not-there"
    assert main(["gc", "--output-dir", str(missing)]) == 0
    assert main(["gc", "--remove", "--output-dir", str(missing)]) == 0
    assert "there is no such folder, and nothing to remove" in capsys.readouterr().out
    assert not missing.exists()


def test_a_damaged_record_is_told_and_is_no_hit(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    from pipeline.store import lookup

    assert lookup(outputs / "store", FINGERPRINTS["used"]) is not None
    assert caplog.messages == []
    record = outputs / "store" / "records" / FINGERPRINTS["used"] / "manifest.json"
    manifest = json.loads(record.read_text(encoding="utf-8"))
    file = outputs / "store" / manifest["artifact"]["digest"] / "rows.jsonl"
    file.chmod(0o644)
    file.write_text("other", encoding="utf-8")
    assert lookup(outputs / "store", FINGERPRINTS["used"]) is None
    assert "changed: rows.jsonl" in caplog.messages[0]
    assert caplog.messages[0].endswith("; it is not used, and the stage is executed")
    record.write_text(record.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert lookup(outputs / "store", FINGERPRINTS["used"]) is None
    assert "the record of an artifact is cut off or was changed" in caplog.messages[1]
