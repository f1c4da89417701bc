"""`rlhf reward-bench`: the table on the screen and in a file, and what is refused."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.cli import main
from pipeline.runs import RunFolder, artifact_record, create_run
from stages.artifacts import publish_payload
from stages.contract import RewardModelArtifact, StageName
from tests.tiny import tiny_model_dir
from tests.unit.stages.data.test_data_stage import write
from tests.unit.stages.parts import PAD, save_random_adapter

ROWS = [
    {"prompt": "One:", "chosen": " a long answer of many words", "rejected": " b", "subset": "x"},
    {"prompt": "Two:", "chosen": " c", "rejected": " another answer", "subset": "y"},
    {"prompt": "Two:", "chosen": " c", "rejected": "", "subset": "y"},
    {"prompt": "Four " * 60, "chosen": " c", "rejected": " d", "subset": "y"},
]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose stage `reward_model` left one."""
    base = tiny_model_dir("llama", tmp_path / "base")
    config = f"""
model: {{base: {base}, dtype: float32, tuning: {{rank: 4, alpha: 8}}}}
data: {{demonstrations: {{path: d.jsonl}}, preferences: {{path: p.jsonl}}}}
reward_model: {{max_length: 10}}
launch: {{device: cpu}}
"""
    stages: tuple[StageName, ...] = ("data", "reward_model")
    run = create_run(tmp_path / "outputs", "c", "r", config, stages, config_path=str(tmp_path / "c.yaml"))
    payload = run.store_dir / ".payload"
    save_random_adapter(payload, base, "seq_cls", seed=1)
    tokenizer = AutoTokenizer.from_pretrained(payload)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
    tokenizer.save_pretrained(payload)
    digest, _ = publish_payload(payload, run.store_dir)
    artifact = RewardModelArtifact(run.store_dir / digest, digest, {})
    run.update_stage("reward_model", status="executed", artifact=artifact_record(artifact, run.output_dir))
    return run


def bench(run: RunFolder, file: str, *options: str) -> int:
    return main(["reward-bench", run.name, file, "--output-dir", str(run.output_dir), *options])


def test_a_table_with_what_was_left_out(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, target = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "table.json"
    assert bench(run, file, "--json", str(target), "--max-length", "60") == 0
    table = json.loads(target.read_text(encoding="utf-8"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["subset", "pairs"], ["x", "1"], ["y", "1"], ["all", "pairs"]]
    assert "1 rows are no pair: empty_response" in lines and "1 pairs were dropped as too long" in lines
    assert lines[-1].startswith("the longest sequence has ") and lines[-1].endswith("trained on up to 10")
    assert [(row["name"], row["pairs"], row["length_baseline"]) for row in table["subsets"]] == [
        ("x", 1, 1),
        ("y", 1, 0),
    ]
    assert (table["dropped"], table["skipped"], table["score"]) == (1, {"empty_response": 1}, None)
    assert (table["run"], table["file"]) == ("r", "rows.jsonl")


def test_what_is_refused_before_a_model_is_loaded(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(run, "nowhere.jsonl") == 2
    assert capsys.readouterr().err == "nowhere.jsonl: there is no such file; one with pairs is needed; name another\n"
    file = write(tmp_path / "rows.jsonl", ROWS)
    assert bench(run, file, "--json", str(tmp_path / "no" / "t.json")) == 2
    assert "no file can be written there; name a file in a folder that is there" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_code:
        bench(run, file, "--batch-size", "0")
    assert exit_code.value.code == 2
    run.update_stage("reward_model", artifact=None)
    assert bench(run, file) == 2
    assert "run r: the stage reward_model left none; a finished reward model is needed" in capsys.readouterr().err
