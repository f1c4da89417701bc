"""What is refused before anything starts, and what `rlhf validate` prints of a configuration."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from pipeline import checks, reward_checks
from pipeline.checks import check_inputs
from pipeline.commands.validate import validate
from pipeline.config import PipelineConfig
from tests.tiny import tiny_model_dir


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with two bases and preferences."""
    tiny_model_dir("llama", tmp_path / "policy")
    tiny_model_dir("gpt2", tmp_path / "judge")
    pair = {"prompt": "The tea", "chosen": " was warm.", "rejected": " was cold."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    return tmp_path


def _values(**sections: Any) -> dict[str, Any]:
    return {"model": {"base": "./policy"}, "data": {"preferences": {"path": "pairs.jsonl"}}} | sections


def test_both_bases_are_checked_and_all_problems_told_at_once(folder: Path) -> None:
    def problems(policy: str, judge: str) -> list[str]:
        values = _values(model={"base": policy}, reward_model={"model": {"base": judge}})
        try:
            check_inputs(PipelineConfig.model_validate(values), folder)
        except UserError as error:
            return str(error).splitlines()
        return []

    assert problems("./policy", "./judge") == []
    (only,) = problems("./policy", "./nowhere")
    assert only.startswith("reward_model.model.base='./nowhere': no folder at ") and "Correct the path" in only
    both = problems("./gone", "./nowhere")
    assert [line.split("=")[0] for line in both] == ["model.base", "reward_model.model.base"]
    (folder / "judge" / "model.safetensors").write_bytes(b"x")
    (damaged,) = problems("./policy", "./judge")
    assert damaged.startswith("reward_model.model.base='./judge'") and "too few for a safetensors header" in damaged


@pytest.mark.parametrize("own", [True, False])
def test_validate_says_where_the_reward_model_is(folder: Path, own: bool, capsys: pytest.CaptureFixture[str]) -> None:
    section = {"model": {"base": "./judge", "dtype": "float32"}} if own else {}
    values = _values(launch={"device": "cpu"}, tracking={"mode": "disabled"}, reward_model=section)
    (folder / "c.yaml").write_text(json.dumps(values), encoding="utf-8")
    options = argparse.Namespace(config=str(folder / "c.yaml"), set=[], output_dir=str(folder / "outputs"))
    assert validate(options) == 0
    lines = capsys.readouterr().out.splitlines()
    said = "reward    ./judge (float32, quantization none), loaded apart"
    assert lines[2] == "base      ./policy (bfloat16, quantization none)"
    assert (said in lines) == own and any(line.startswith("reward ") for line in lines) == own


def test_skipped_rows_of_a_refused_source_are_left_in_the_output_folder(folder: Path) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "a" if n == 3 else "b"} for n in range(9)]
    path, left = folder / "pairs.jsonl", folder / "out" / "preferences.quarantine.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    values = PipelineConfig.model_validate(_values(output_dir=str(folder / "out")))
    with pytest.raises(UserError, match=rf"1 of 9 rows would be skipped .*:4 .* \(all of them are in {left}"):
        check_inputs(values, folder)
    (line,) = left.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "source": "preferences", "place": "pairs.jsonl:4", "reason": "equal_responses", "row": pairs[3],
    }  # fmt: skip
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs if pair is not pairs[3]), encoding="utf-8")
    check_inputs(values, folder)
    assert not left.exists()


def test_adapters_that_the_preferences_name_are_checked(folder: Path) -> None:
    def problems(**settings: Any) -> list[str]:
        data = {"demonstrations": {"path": "pairs.jsonl", "columns": {"response": "chosen"}}}
        try:
            check_inputs(PipelineConfig.model_validate(_values(data=data, preferences=settings)), folder)
        except UserError as error:
            return str(error).splitlines()
        return []

    (missing,) = problems(policy="./nowhere")
    assert missing.startswith("preferences.policy='./nowhere': no adapter at ") and "Correct the path" in missing
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "./judge", "peft_type": "LORA"}), encoding="utf-8"
    )
    (other,) = problems(policy="./adapter")
    assert "was trained on base './judge', but model.base is './policy'" in other
    (member,) = problems(selection={"type": "ensemble_disagreement", "reward_models": ["./nowhere", "./neither"]})
    assert member.startswith("preferences.selection.reward_models='./nowhere': no adapter at ")
    assert problems() == []


def test_a_reward_model_alone_does_not_disagree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has one member; how many it has is read from its files."""
    counts = {"one": 1, "three": 3}
    for name in counts:
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text("{}", encoding="utf-8")
    for module in (checks, reward_checks):
        monkeypatch.setattr(module, "check_reward_model", lambda folder, model, config_dir: None)
        monkeypatch.setattr(module, "num_members", lambda folder: counts[folder.name])

    def problems(**settings: Any) -> list[str]:
        data = {"demonstrations": {"path": "pairs.jsonl", "columns": {"response": "chosen"}}, "preferences": None}
        try:
            check_inputs(PipelineConfig.model_validate(_values(data=data, **settings)), folder)
        except UserError as error:
            return str(error).splitlines()
        return []

    def asked(*names: str) -> dict[str, Any]:
        return {"selection": {"type": "ensemble_disagreement", "reward_models": [f"./{name}" for name in names]}}

    (message,) = problems(preferences=asked("one"))
    assert message.startswith("preferences.selection.reward_models: names one reward model of one member")
    assert problems(preferences=asked("three")) == problems(preferences=asked("one", "three")) == []

    def reward(**settings: Any) -> dict[str, Any]:
        return {"preferences": {}, "ppo": {"rewards": [{"type": "ensemble", **settings}]}}

    for settings in ({}, {"members": ["./one"], "with_own": False}):
        (message,) = problems(**reward(**settings))
        assert message.startswith("ppo.rewards[ensemble]: has one member, which agrees with itself; name another")
    assert problems(**reward(members=["./three"], with_own=False)) == problems(**reward(members=["./one"])) == []
    assert problems(**reward(), reward_model={"ensemble": {"members": 2, "of": "heads"}}) == []
