"""The one entry of a stage: specification, manifest, nothing half-written, exit codes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.errors import ArtifactError, DataError
from stages import run as run_module
from stages.artifacts import find_artifact, verify_artifact
from stages.contract import Artifact, DatasetArtifact, PolicyArtifact, StageContext, StageOutput
from stages.metrics import read_metrics
from stages.run import StageSpec, main, package_version, run_stage

ROOT = Path(__file__).parents[3]


def _spec(tmp_path: Path, **other: Any) -> StageSpec:
    folder = tmp_path / "input"
    folder.mkdir(exist_ok=True)
    (folder / "x.jsonl").write_text("{}\n")
    from stages.artifacts import combine_digests, file_digests

    inputs: dict[str, Artifact] = {"dataset": DatasetArtifact(folder, combine_digests(file_digests(folder)))}
    values: dict[str, Any] = {
        "stage": "sft",
        "config": {"a": 1},
        "model": {"base": "b"},
        "inputs": inputs,
        "stage_dir": tmp_path / "run" / "sft",
        "store_dir": tmp_path / "store",
        "seed": 5,
        "device": "cpu",
        "fingerprint": "key",
        "config_dir": tmp_path,
        "deepspeed": {"stage": 2},
    }
    return StageSpec(**values | other)


def _stand_in(spec: StageSpec, context: StageContext) -> StageOutput:
    context.metrics.write(1, {"train/loss": 0.5})
    (context.scratch_dir / "checkpoint").write_text("x")
    (context.payload_dir / "adapter").write_text(json.dumps(spec.config))
    context.report_progress(1, 1, "done")
    return StageOutput({"eval/loss": 0.5}, notes={"pad": "x"})


def test_a_specification_survives_json(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    assert StageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    bare = _spec(tmp_path, config_dir=None, deepspeed=None)
    assert StageSpec.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_a_stage_is_published_with_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_execute", _stand_in)
    spec, progress = _spec(tmp_path), []
    manifest = run_stage(spec, lambda *values: progress.append(values))
    assert progress == [(1, 1, "done")]
    found = find_artifact(spec.store_dir, "key")
    assert isinstance(found, PolicyArtifact)
    assert found.parents == {"dataset": spec.inputs["dataset"].digest}
    verify_artifact(found, manifest["files"])
    assert json.loads((spec.stage_dir / "manifest.json").read_text()) == manifest
    assert (spec.stage_dir / "artifact" / "adapter").read_text() == '{"a": 1}'
    assert [row["train/loss"] for row in read_metrics(spec.stage_dir / "metrics.jsonl")] == [0.5]
    assert sorted(path.name for path in spec.stage_dir.iterdir()) == ["artifact", "manifest.json", "metrics.jsonl"]
    assert sorted(path.name for path in spec.store_dir.iterdir()) == sorted([found.digest, "records"])
    assert manifest["config"] == {"stage": {"a": 1}, "model": {"base": "b"}}
    assert (manifest["seed"], manifest["fingerprint"], manifest["stage"]) == (5, "key", "sft")
    assert manifest["packages"]["torch"] == package_version("torch")
    assert manifest["metrics"] == {"eval/loss": 0.5} and manifest["notes"] == {"pad": "x"}
    assert manifest["hardware"]["device"] == "cpu" and manifest["seconds"] >= 0


def test_the_manifest_tells_the_stages_own_work_from_what_comes_on_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    def pass_seconds(seconds: float, function: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            now[0] += seconds
            return function(*arguments)

        return wrapped

    def stage(spec: StageSpec, context: StageContext) -> StageOutput:
        context.timings["imports"] = 8.0
        return _stand_in(spec, context)

    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(run_module, "verify_artifact", pass_seconds(1.0, verify_artifact))
    monkeypatch.setattr(run_module, "_execute", pass_seconds(40.0, stage))
    monkeypatch.setattr(run_module, "publish_payload", pass_seconds(2.0, run_module.publish_payload))
    manifest = run_stage(_spec(tmp_path), lambda *values: None)
    assert manifest["timings"] == {"hashing": 1.0, "imports": 8.0, "stage": 32.0, "storing": 2.0}
    assert manifest["seconds"] == 42.0


def test_the_digest_does_not_depend_on_folder_seed_or_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_execute", _stand_in)
    digests = set()
    for number in range(2):
        spec = _spec(tmp_path, stage_dir=tmp_path / str(number), store_dir=tmp_path / f"s{number}", seed=number)
        digests.add(run_stage(spec, lambda *values: None)["artifact"]["digest"])
    assert len(digests) == 1


def test_checklist_52_a_stage_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(spec: StageSpec, context: StageContext) -> StageOutput:
        _stand_in(spec, context)
        raise DataError("row 3")

    monkeypatch.setattr(run_module, "_execute", fail)
    spec = _spec(tmp_path)
    with pytest.raises(DataError, match="row 3"):
        run_stage(spec, lambda *values: None)
    assert find_artifact(spec.store_dir, "key") is None
    assert list(spec.store_dir.iterdir()) == []
    assert [path.name for path in spec.stage_dir.iterdir()] == ["metrics.jsonl"]


def test_a_changed_input_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_execute", lambda spec, context: pytest.fail("the stage ran"))
    spec = _spec(tmp_path)
    (spec.inputs["dataset"].path / "x.jsonl").write_text("{} ")
    with pytest.raises(ArtifactError, match="the content is not what the digest"):
        run_stage(spec, lambda *values: None)
    missing = dataclasses.replace(spec.inputs["dataset"], path=tmp_path / "none")
    with pytest.raises(ArtifactError, match="is missing; run the stage that makes it again"):
        run_stage(dataclasses.replace(spec, inputs={"dataset": missing}), lambda *values: None)


def test_only_rank_zero_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_execute", _stand_in)
    monkeypatch.setenv("RANK", "1")
    spec, progress = _spec(tmp_path), []
    assert run_stage(spec, lambda *values: progress.append(values)) == {}
    assert progress == [] and list(spec.store_dir.iterdir()) == [] and list(spec.stage_dir.iterdir()) == []


@pytest.mark.parametrize("error", [DataError("bad row"), None])
def test_exit_codes_and_what_the_parent_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: DataError | None
) -> None:
    def execute(spec: StageSpec, context: StageContext) -> StageOutput:
        if error is not None:
            raise error
        return _stand_in(spec, context)

    monkeypatch.setattr(run_module, "_execute", execute)
    monkeypatch.setattr(run_module, "die_with_parent", lambda: None)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(_spec(tmp_path).to_json()))
    monkeypatch.setattr(sys, "argv", ["stages.run", str(path)])
    assert main() == (0 if error is None else 2)
    expected = '::progress:: [1, 1, "done"]' if error is None else '::user-error:: "bad row"'
    assert expected in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["stages.run"])
    assert main() == 2
    assert "usage: python -m stages.run SPEC.json" in capsys.readouterr().err


def test_the_entry_needs_no_torch_to_start() -> None:
    code = (
        "import sys, stages.run; print([n for n in ('torch', 'transformers', 'prefect', 'wandb') if n in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert found.stdout.strip() == "[]"


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert package_version("no-such-distribution") is None
