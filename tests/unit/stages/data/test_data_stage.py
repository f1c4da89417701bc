"""The data stage: splits, derivation, leakage, duplicates, and the same bytes every time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.errors import DataError
from data.schema import KINDS, SPLITS, Kind, PromptRecord, Record, is_held_out, prompt_key, read_split
from stages.artifacts import file_digests
from stages.contract import StageContext, StageOutput
from stages.data import stage
from stages.data.split import held_out_keys, split_records
from stages.metrics import MetricsWriter, read_metrics
from stages.run import StageSpec


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """A JSON lines file; returns its path as a configuration holds it."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(numbers: range) -> list[dict[str, Any]]:
    """Preference rows with numbered prompts."""
    return [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in numbers]


def run(tmp_path: Path, config: dict[str, Any], folder: str = "out") -> tuple[StageOutput, Path]:
    """Run the stage; returns its output and the artifact's folder."""
    payload = tmp_path / folder / "payload"
    payload.mkdir(parents=True)
    with MetricsWriter(tmp_path / folder / "metrics.jsonl") as metrics:
        context = StageContext(
            payload_dir=payload,
            scratch_dir=tmp_path / folder,
            stage_dir=tmp_path / folder,
            seed=0,
            device="cpu",
            metrics=metrics,
            report_progress=lambda done, total, what: None,
            config_dir=tmp_path,
        )
        return stage.run(DataConfig.model_validate(config), {}, context), payload


def prompts_in(folder: Path, kind: Kind, split: Any) -> set[str]:
    """Keys of the prompts in a split."""
    records: list[Record] = [*read_split(folder, kind, split)]
    return {prompt_key(record.prompt) for record in records}


def test_kinds_are_derived_from_preferences(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", pairs(range(200)))
    output, folder = run(tmp_path, {"preferences": {"path": path, "held_out": 0.2}})
    assert sorted(file_digests(folder)) == [
        f"{kind}/{split}.jsonl" for kind in KINDS for split in ("held_out", "train")
    ]
    held_out = {f"q{n}" for n in range(200) if is_held_out(f"q{n}", 0.2)}
    for kind in KINDS:
        assert prompts_in(folder, kind, "held_out") == {prompt_key(prompt) for prompt in held_out}
        assert output.metrics[f"{kind}/held_out"] == len(held_out)
        assert output.metrics[f"{kind}/train"] == 200 - len(held_out)
    assert [record.response for record in read_split(folder, "demonstrations", "train")] == [
        pair.chosen for pair in read_split(folder, "preferences", "train")
    ]
    assert output.notes["origins"] == {
        "demonstrations": "preferences",
        "preferences": "source",
        "prompts": "preferences",
    }
    assert set(output.notes["source_digests"]) == {"preferences"}


def test_prompts_are_derived_from_demonstrations(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"prompt": f"q{n}", "response": "r"} for n in range(20)])
    output, folder = run(tmp_path, {"demonstrations": {"path": path}})
    assert output.notes["origins"]["prompts"] == "demonstrations"
    assert not (folder / "preferences").exists()
    assert prompts_in(folder, "prompts", "train") == prompts_in(folder, "demonstrations", "train")


def test_plain_text_has_no_prompts_and_is_split_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"text": f"story {n}"} for n in range(100)])
    output, folder = run(tmp_path, {"demonstrations": {"path": path, "held_out": 0.3}})
    assert sorted(path.name for path in folder.iterdir()) == ["demonstrations"]
    assert 10 < output.metrics["demonstrations/held_out"] < 50


def test_checklist_07_no_held_out_prompt_is_trained_on_by_any_kind(tmp_path: Path) -> None:
    # Other shares, and prompts that differ in form only: messages, Unicode form, outer space.
    demonstrations = [{"instruction": f"q{n} ", "output": "é"} for n in range(300)]
    config = {
        "demonstrations": {"path": write(tmp_path / "d.jsonl", demonstrations), "held_out": 0.05},
        "preferences": {"path": write(tmp_path / "p.jsonl", pairs(range(100, 400))), "held_out": 0.4},
        "prompts": {
            "path": write(tmp_path / "q.jsonl", [{"prompt": f" q{n}"} for n in range(500)]),
            "held_out": 0.2,
        },
    }
    output, folder = run(tmp_path, config)
    held_out = set().union(*(prompts_in(folder, kind, "held_out") for kind in KINDS))
    for kind in KINDS:
        assert not prompts_in(folder, kind, "train") & held_out
    assert output.metrics["demonstrations/leaks"] > 0
    assert output.metrics["prompts/leaks"] > 0
    total = {"demonstrations": 300, "preferences": 300, "prompts": 500}
    for kind in KINDS:
        counts = (output.metrics[f"{kind}/{what}"] for what in ("train", "held_out", "leaks"))
        assert sum(counts) == total[kind]


def test_checklist_07_holds_where_the_least_hash_was_held_out_by_force() -> None:
    few = [PromptRecord(prompt=f"q{n}") for n in range(3)]
    many = [PromptRecord(prompt=f"q{n}") for n in range(30)]
    share = 1e-6
    splits = split_records({"prompts": few, "preferences": many}, {"prompts": share, "preferences": 0.0})
    least = min(few, key=lambda record: prompt_key(record.prompt))
    assert splits["prompts"].held_out == [least]
    assert splits["preferences"].num_leaks == 1
    assert least not in splits["preferences"].train


def test_small_sources_have_both_sides() -> None:
    keys = [prompt_key(f"q{n}") for n in range(12)]
    assert held_out_keys(keys, 1e-6) == {min(keys)}
    assert held_out_keys(keys, 0.0) == set()
    assert held_out_keys(keys[:1] * 5, 0.5) == set()
    everything = 1.0 - 1e-9
    assert held_out_keys(keys, everything) == set(keys) - {max(keys)}
    assert held_out_keys(keys[:2], 0.5) in ({min(keys[:2])}, {max(keys[:2])})


def test_a_prompt_stays_on_its_side_when_rows_are_added_or_reordered(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", pairs(range(100)))
    two = write(tmp_path / "two.jsonl", pairs(range(150))[::-1])
    _, small = run(tmp_path, {"preferences": {"path": one}}, "small")
    _, large = run(tmp_path, {"preferences": {"path": two}}, "large")
    for split in SPLITS:
        assert prompts_in(small, "preferences", split) <= prompts_in(large, "preferences", split)


def test_duplicates_and_skipped_rows_are_counted(tmp_path: Path) -> None:
    rows = pairs(range(20)) + pairs(range(5)) + [{"prompt": "x", "chosen": "same", "rejected": "same"}]
    path = write(tmp_path / "p.jsonl", rows)
    output, folder = run(tmp_path, {"preferences": {"path": path}, "max_skipped_share": 0.25})
    assert output.metrics["preferences/duplicates"] == output.metrics["skipped/preferences_duplicate"] == 5
    assert (output.metrics["rows/read"], output.metrics["rows/skipped"]) == (26, 6)
    assert output.metrics["skipped/preferences_equal_responses"] == 1
    assert output.metrics["preferences/train"] + output.metrics["preferences/held_out"] == 20
    row = read_metrics(folder.parent / "metrics.jsonl")[0]
    assert row["step"] == 0
    assert {name: value for name, value in row.items() if name not in ("step", "seconds")} == output.metrics


def test_share_of_zero_holds_nothing_out(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", pairs(range(20)))
    output, folder = run(tmp_path, {"preferences": {"path": path, "held_out": 0.0}})
    assert output.metrics["preferences/train"] == 20
    assert read_split(folder, "preferences", "held_out") == []


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    config = {
        "preferences": {"path": write(tmp_path / "p.jsonl", pairs(range(40))), "held_out": 0.5},
        "prompts": {
            "path": write(tmp_path / "q.jsonl", [{"prompt": f"q{n}"} for n in range(40) if is_held_out(f"q{n}", 0.5)]),
            "held_out": 0.0,
        },
    }
    with pytest.raises(DataError, match=r"data.prompts: nothing is left to train on: (\d+) of \1 records .*; .*; give"):
        run(tmp_path, config)


def test_errors_name_the_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.jsonl: data.preferences: there is no such file"):
        run(tmp_path, {"preferences": {"path": "gone.jsonl"}})
    path = write(tmp_path / "p.jsonl", [*pairs(range(2)), {"prompt": "q", "chosen": "a"}])
    with pytest.raises(DataError, match=r"p.jsonl:3: data.preferences: column `rejected` is missing"):
        run(tmp_path, {"preferences": {"path": path}}, "again")


def test_bytes_are_the_same_under_another_hash_seed_and_place_and_no_torch_is_loaded(tmp_path: Path) -> None:
    rows = pairs(range(60)) + [{"prompt": "سلام \U0001f469‍\U0001f680", "chosen": "é", "rejected": "b\u2028c"}]
    digests = []
    for number, seed in enumerate(("1", "2")):
        place = tmp_path / f"place{number}"
        place.mkdir()
        path = write(place / "p.jsonl", rows)
        spec = StageSpec(
            stage="data",
            config={"preferences": {"path": path}},
            model={},
            inputs={},
            stage_dir=place / "run",
            store_dir=place / "store",
            seed=number,
            device="cpu",
            fingerprint="f" * 64,
        )
        (place / "spec.json").write_text(json.dumps(spec.to_json()))
        code = (
            "import sys\nsys.argv = ['run', 'spec.json']\nfrom stages.run import main\nassert main() == 0\n"
            "heavy = {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        manifest = json.loads((place / "run" / "manifest.json").read_text())
        digests.append((manifest["artifact"]["digest"], manifest["notes"]["source_digests"]))
    assert digests[0] == digests[1]
