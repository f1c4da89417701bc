"""What killed executions leave is removed by the next one of the same stage, and nothing else is."""

from pathlib import Path

from stages.leftovers import payload_prefix, remove_leftovers

MINE, OTHER = "a" * 64, "b" * 64


def test_leftovers_go_and_results_and_others_stay(tmp_path: Path) -> None:
    store, stage = tmp_path / "store", tmp_path / "run" / "sft"
    gone = [
        store / f"{payload_prefix(MINE)}x1/adapter.safetensors", stage / ".scratch-abc/checkpoint-1/optimizer.pt",
        stage / ".spec.json", stage / ".spec.json.tmp1", stage / ".manifest.json.x2",
        store / "records" / MINE / ".manifest.json.x3", store / "records" / MINE / ".digests.json.x4",
    ]  # fmt: skip
    stay = [
        store / f"{payload_prefix(OTHER)}y1/adapter.safetensors", store / ("c" * 64) / "rows.jsonl",
        store / "records" / MINE / "manifest.json", store / "records" / OTHER / ".manifest.json.y2",
        stage / "metrics.jsonl", stage / "log.txt", stage / "checkpoints/step-00000001/checkpoint.json",
        tmp_path / "run" / "ppo" / ".scratch-def/x",
    ]  # fmt: skip
    for path in [*gone, *stay]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
    remove_leftovers(stage, store, MINE)
    assert [path for path in gone if path.exists()] == []
    assert [path for path in stay if not path.exists()] == []
    remove_leftovers(tmp_path / "not" / "there", tmp_path / "no-store", MINE)
