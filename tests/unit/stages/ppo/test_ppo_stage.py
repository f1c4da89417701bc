"""The PPO stage on the planted reward model: the artifact, its metrics, what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from data.errors import DataError, ModelError, StageError
from rewards.learned import LearnedReward
from stages.artifacts import verify_artifact
from stages.metrics import read_metrics
from stages.models.config import ModelConfig
from stages.models.tuning import adapter_state
from stages.ppo.config import PPOConfig
from tests.unit.stages.parts import Executed, executed, stage_spec


def _again(run: Executed, outputs: Path, **settings: Any) -> Executed:
    config = PPOConfig.model_validate(run.spec.config | settings)
    return executed(stage_spec("ppo", config, ModelConfig.model_validate(run.spec.model), run.spec.inputs, outputs))


def test_the_policy_is_saved_as_peft_loads_it(ppo_run: Executed) -> None:
    verify_artifact(ppo_run.artifact, ppo_run.manifest["files"])
    base = AutoModelForCausalLM.from_pretrained(ppo_run.spec.model["base"], dtype=torch.float32)
    PeftModel.from_pretrained(base, ppo_run.artifact.path)
    before, after = adapter_state(ppo_run.spec.inputs["policy"].path), adapter_state(ppo_run.artifact.path)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[key], after[key]) for key in before)


def test_checklist_53_parents_are_the_inputs_by_digest(ppo_run: Executed) -> None:
    inputs = {role: artifact.digest for role, artifact in ppo_run.spec.inputs.items()}
    assert ppo_run.artifact.parents == inputs == ppo_run.manifest["artifact"]["parents"]


def test_every_step_is_logged_and_the_first_has_no_kl(ppo_run: Executed) -> None:
    rows = read_metrics(ppo_run.spec.stage_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["objective/kl"] == 0.0 and rows[2]["objective/kl"] != 0.0
    assert all(row["rollout/logprob_delta_max"] < 1e-4 for row in rows)
    metrics = ppo_run.manifest["metrics"]
    assert metrics["objective/scores"] == rows[-1]["objective/scores"]
    assert metrics["data/prompts"] == 100 and metrics["data/dropped"] == 0


def test_checklist_37_the_start_of_the_critic_is_recorded(ppo_run: Executed) -> None:
    assert "reward model" in ppo_run.manifest["notes"]["critic_initialisation"]
    assert ppo_run.manifest["notes"]["bad_steps"] == 0


def test_checklist_47_the_same_stage_twice_gives_one_digest(ppo_run: Executed, tmp_path: Path) -> None:
    assert _again(ppo_run, tmp_path).artifact.digest == ppo_run.artifact.digest
    # Checkpointing of activations recomputes the same numbers, generation included.
    checkpointed = _again(ppo_run, tmp_path / "checkpointed", gradient_checkpointing=True)
    for key, weight in adapter_state(checkpointed.artifact.path).items():
        torch.testing.assert_close(weight, adapter_state(ppo_run.artifact.path)[key], rtol=0, atol=1e-3)


def test_an_ensemble_of_the_same_reward_model_changes_nothing(ppo_run: Executed, tmp_path: Path) -> None:
    """The mean of equal scores is the score; the worst of a score and its copy, too."""
    folder = str(ppo_run.spec.inputs["reward_model"].path)
    ensemble = {"members": [folder], "combine": "min"}
    assert _again(ppo_run, tmp_path, reward_ensemble=ensemble).artifact.digest == ppo_run.artifact.digest
    with pytest.raises(ModelError, match=r"ppo.reward_ensemble.members='nowhere': no adapter at .*nowhere"):
        _again(ppo_run, tmp_path / "x", reward_ensemble={"members": ["nowhere"]})


def test_a_stage_without_a_single_update_fails(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LearnedReward, "__call__", lambda self, episodes: [math.nan] * len(episodes))
    with pytest.raises(StageError, match="every update was skipped as not finite"):
        _again(ppo_run, tmp_path, steps=1, max_bad_steps=9)


def test_checklist_06_prompts_that_do_not_fit_are_an_error(ppo_run: Executed, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ppo: all 100 prompts are longer than ppo.max_prompt_tokens=1"):
        _again(ppo_run, tmp_path, max_prompt_tokens=1)
