"""Preference collection with a planted labeler: pairs agree with it, held-out pairs come from held-out prompts."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.errors import StageError
from data.schema import read_split
from stages.models.config import ModelConfig
from stages.preferences.config import PreferencesConfig
from tests.unit.stages.parts import PROMPTS, Executed, executed, stage_spec


def _again(run: Executed, outputs: Path, **settings: Any) -> Executed:
    config = PreferencesConfig.model_validate(run.spec.config | settings)
    model = ModelConfig.model_validate(run.spec.model)
    return executed(stage_spec("preferences", config, model, run.spec.inputs, outputs))


def _share(text: str) -> float:
    return sum(character in "aeiou" for character in text) / max(len(text), 1)


def test_checklist_07_pairs_come_from_the_prompts_of_their_split(preferences_run: Executed) -> None:
    folder = preferences_run.artifact.path
    for split, allowed, limit in (("train", PROMPTS[28:], 12), ("held_out", PROMPTS[:28], 5)):
        pairs = read_split(folder, "preferences", split)  # type: ignore[call-overload]
        counts = Counter(pair.prompt for pair in pairs)
        assert pairs and set(counts) <= set(allowed)
        assert len(counts) <= limit and max(counts.values()) <= 3  # 3 responses make 3 pairs
        assert all(_share(pair.chosen) > _share(pair.rejected) for pair in pairs)


def test_the_counts_are_reported(preferences_run: Executed) -> None:
    metrics = preferences_run.manifest["metrics"]
    for split, prompts in (("train", 12), ("held_out", 5)):
        pairs = read_split(preferences_run.artifact.path, "preferences", split)  # type: ignore[call-overload]
        assert metrics[f"{split}/prompts"] == prompts and metrics[f"{split}/responses"] == 3 * prompts
        assert metrics[f"{split}/pairs"] == len(pairs) and metrics[f"{split}/dropped"] == 0
        assert 0 < metrics[f"{split}/distinct_share"] <= 1 and 0 < metrics[f"{split}/labeler_score"] < 1


def test_the_same_run_gives_the_same_pairs_and_another_seed_others(preferences_run: Executed, tmp_path: Path) -> None:
    assert _again(preferences_run, tmp_path).artifact.digest == preferences_run.artifact.digest
    model = ModelConfig.model_validate(preferences_run.spec.model)
    config = PreferencesConfig.model_validate(preferences_run.spec.config)
    spec = stage_spec("preferences", config, model, preferences_run.spec.inputs, tmp_path, seed=6)
    assert executed(spec).artifact.digest != preferences_run.artifact.digest


def test_fewer_pairs_and_no_held_out_prompts(preferences_run: Executed, tmp_path: Path) -> None:
    run = _again(preferences_run, tmp_path, pairs_per_prompt=1, num_held_out_prompts=0)
    counts = Counter(pair.prompt for pair in read_split(run.artifact.path, "preferences", "train"))
    assert set(counts.values()) == {1}
    assert read_split(run.artifact.path, "preferences", "held_out") == []


def test_a_labeler_without_an_opinion_ends_the_stage(preferences_run: Executed, tmp_path: Path) -> None:
    labeler = {"type": "simulated", "reward": {"type": "character_share", "characters": "\u2603"}}
    with pytest.raises(StageError, match=r"no pair came out of 36 responses: the labeler gave all"):
        _again(preferences_run, tmp_path, labeler=labeler)


def test_responses_that_were_cut_off_make_no_pair(preferences_run: Executed, tmp_path: Path) -> None:
    assert preferences_run.manifest["metrics"]["train/finished_share"] < 1.0
    every = preferences_run.manifest["metrics"]["train/pairs"]
    rollout = preferences_run.spec.config["rollout"] | {"max_new_tokens": 1, "temperature": 0.05}
    with pytest.raises(StageError, match=r"the length limit cut them off \(0% ended by themselves\)"):
        _again(preferences_run, tmp_path / "cut", only_finished=True, rollout=rollout)
    longer = preferences_run.spec.config["rollout"] | {"max_new_tokens": 60}
    some = _again(preferences_run, tmp_path / "some", only_finished=True, rollout=longer)
    share, pairs = (some.manifest["metrics"][f"train/{name}"] for name in ("finished_share", "pairs"))
    assert 0.0 < share < 1.0 and 0 < pairs < every
