"""The evaluation stage: the names of DESIGN section 3, figures that follow from its samples, paired prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from stages.evaluation.config import EvaluationConfig
from stages.models.config import ModelConfig
from tests.unit.stages.parts import PROMPTS, Executed, executed, stage_spec

_FIVE = ("before", "after", "gain", "gain_low", "gain_high")
DESIGN = {
    *(f"proxy/{name}" for name in _FIVE),
    "kl/mean", "win_rate/mean", "win_rate/low", "win_rate/high",
    "response_length/before", "response_length/after", "distinct_2/before", "distinct_2/after",
}  # fmt: skip
GOLD = {f"gold/{name}" for name in _FIVE}


def _again(run: Executed, outputs: Path, inputs: dict[str, Any] | None = None, **settings: Any) -> Executed:
    config = EvaluationConfig.model_validate(run.spec.config | settings)
    model = ModelConfig.model_validate(run.spec.model)
    return executed(stage_spec("evaluation", config, model, run.spec.inputs | (inputs or {}), outputs))


def _samples(run: Executed) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.artifact.path / "samples.jsonl").read_text().splitlines()]


def test_the_metrics_have_the_names_of_the_design(evaluation_run: Executed, tmp_path: Path) -> None:
    metrics = evaluation_run.manifest["metrics"]
    assert DESIGN | GOLD <= metrics.keys()
    assert json.loads((evaluation_run.artifact.path / "metrics.json").read_text()) == metrics
    without = _again(evaluation_run, tmp_path, gold=None).manifest["metrics"]
    assert without.keys() >= DESIGN and not any(name.startswith("gold") for name in without)
    assert without["proxy/gain"] == metrics["proxy/gain"]


def test_figures_follow_from_the_samples(evaluation_run: Executed) -> None:
    metrics, samples = evaluation_run.manifest["metrics"], _samples(evaluation_run)
    assert [sample["prompt"] for sample in samples] == list(PROMPTS[:10])
    for scorer, win_rate in (("proxy", "win_rate"), ("gold", "gold_win_rate")):
        before, after = ([sample[f"{scorer}_{side}"] for sample in samples] for side in ("before", "after"))
        gain = sum(after) / 10 - sum(before) / 10
        assert metrics[f"{scorer}/gain"] == pytest.approx(gain)
        assert metrics[f"{scorer}/gain_low"] <= metrics[f"{scorer}/gain"] <= metrics[f"{scorer}/gain_high"]
        wins = sum((new > old) + 0.5 * (new == old) for old, new in zip(before, after, strict=True)) / 10
        assert metrics[f"{win_rate}/mean"] == pytest.approx(wins)
    share = [sum(c in "aeiou" for c in s["after"]) / max(len(s["after"]), 1) for s in samples]
    assert [sample["gold_after"] for sample in samples] == pytest.approx(share)
    assert metrics["kl/mean"] != 0.0
    assert 1 <= metrics["response_length/after"] <= 6


def test_a_policy_against_itself_is_a_draw_without_kl(evaluation_run: Executed, tmp_path: Path) -> None:
    reference = evaluation_run.spec.inputs["reference"]
    metrics = _again(evaluation_run, tmp_path, {"policy": reference}).manifest["metrics"]
    assert metrics["kl/mean"] == 0.0
    for name in ("proxy/gain", "proxy/gain_low", "proxy/gain_high", "gold/gain"):
        assert metrics[name] == 0.0
    for name in ("mean", "low", "high"):
        assert metrics[f"win_rate/{name}"] == 0.5
    assert metrics["response_length/before"] == metrics["response_length/after"]


def test_checklist_06_prompts_that_do_not_fit_are_an_error(evaluation_run: Executed, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"28 prompts are held out, 28 of them longer than .*at least 2 are needed"):
        _again(evaluation_run, tmp_path, max_prompt_tokens=1)
