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
from stages.ppo import stage as stage_module
from stages.ppo import trainer as trainer_module
from stages.ppo.config import PPOConfig
from stages.ppo.state import load_state
from stages.ppo.trainer import PPOTrainer
from tests.unit.stages.parts import Executed, FoldersOf, executed, snapshot, stage_spec
from tests.unit.stages.ppo.trainers import MakeTrainer, learners, policy_parameters, spy

ROLES = ("reference", "reward", "critic")


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
    ensemble = {"type": "ensemble", "members": [folder], "combine": "min"}
    assert _again(ppo_run, tmp_path, rewards=[ensemble]).artifact.digest == ppo_run.artifact.digest
    with pytest.raises(ModelError, match=r"ppo\.rewards\[ensemble\]\.members='nowhere': no adapter at .*nowhere"):
        _again(ppo_run, tmp_path / "x", rewards=[{"type": "ensemble", "members": ["nowhere"]}])


def test_a_stage_without_a_single_update_fails(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LearnedReward, "__call__", lambda self, episodes: [math.nan] * len(episodes))
    with pytest.raises(StageError, match="every update was skipped as not finite"):
        _again(ppo_run, tmp_path, steps=1, max_bad_steps=9)


def test_checklist_06_prompts_that_do_not_fit_are_an_error(ppo_run: Executed, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ppo: all 100 prompts are longer than ppo.max_prompt_tokens=1"):
        _again(ppo_run, tmp_path, max_prompt_tokens=1)


@pytest.mark.parametrize(("estimator", "responses"), [("rloo", 4), ("grpo", 2), ("reinforce_plus_plus", 1)])
def test_a_stage_without_a_critic_loads_none(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, estimator: str, responses: int
) -> None:
    calls = spy(monkeypatch, PPOTrainer, "step")
    found = _again(ppo_run, tmp_path, advantage_estimator=estimator, responses_per_prompt=responses)
    (trainer, _), _, _ = calls[0]
    assert trainer.models.value_head is None and learners(trainer).keys() == {"policy"}
    assert set(trainer.models.shared_base.peft_model.peft_config) == {"policy", "reference", "reward"}
    assert found.manifest["notes"]["critic_initialisation"] == f"none: {estimator} has no critic"
    assert not [name for name in found.manifest["metrics"] if name.startswith("value/")]
    verify_artifact(found.artifact, found.manifest["files"])
    before, after = adapter_state(ppo_run.spec.inputs["policy"].path), adapter_state(found.artifact.path)
    assert before.keys() == after.keys() and not any(torch.equal(before[key], after[key]) for key in before)
    # 8 episodes a step: 8 / responses prompts, each as often as it has responses, others in the next step.
    steps = [[tuple(prompt) for prompt in args[1]] for args, _, _ in calls]
    assert [len(prompts) for prompts in steps] == [8] * 3
    groups = [prompts[::responses] for prompts in steps]
    assert steps == [[prompt for prompt in group for _ in range(responses)] for group in groups]
    assert len({prompt for group in groups for prompt in group}) == 24 // responses


@pytest.mark.parametrize("start", ["zero", "reward_model"])
def test_checklist_37_the_critic_starts_where_it_is_told(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    calls = spy(monkeypatch, trainer_module, "collect_experience")
    starts: dict[str, list[torch.Tensor]] = {}
    original = PPOTrainer.__init__

    def remember(self: PPOTrainer, **parts: Any) -> None:
        original(self, **parts)
        starts.update({role: snapshot(parts["models"].shared_base.parameters(role)) for role in ROLES})

    monkeypatch.setattr(PPOTrainer, "__init__", remember)
    found = _again(ppo_run, tmp_path, critic_init=start, steps=1)
    values = calls[0][2][0].values
    same_as = [role for role in ROLES[:2] if all(map(torch.equal, starts["critic"], starts[role]))]
    note = found.manifest["notes"]["critic_initialisation"]
    if start == "zero":
        assert not values.any() and same_as == ["reference"]
        assert note == "SFT adapter, with a value head of zeros"
        return
    assert same_as == ["reward"] and note.startswith("reward model, with its normalisation")
    assert values.abs().max() > 0.01


def test_checklist_49_the_state_before_the_failure_is_kept_and_loads(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: MakeTrainer, folders: FoldersOf
) -> None:
    assert ppo_run.spec.model["base"] == str(folders("llama").base)
    judge = LearnedReward.__call__
    states: list[list[torch.Tensor]] = []
    original_step = PPOTrainer.step

    def step(self: PPOTrainer, prompts: Any) -> dict[str, float]:
        found = original_step(self, prompts)
        states.append(snapshot(policy_parameters(self)))
        return found

    monkeypatch.setattr(PPOTrainer, "step", step)
    monkeypatch.setattr(
        LearnedReward, "__call__",
        lambda self, episodes: judge(self, episodes) if not states else [math.nan] * len(episodes),
    )  # fmt: skip
    kept = tmp_path / "run" / "ppo" / "checkpoints" / "step-00000001"
    with pytest.raises(
        StageError, match=r"1 batches or .*not finite \(scores\).*The state after step 1 is kept in "
    ) as caught:
        _again(ppo_run, tmp_path, max_bad_steps=0)
    assert f"kept in {kept}: `rlhf resume run` goes on from there, with the same settings; changed " in str(
        caught.value
    )
    assert len(states) == 1
    fresh = make(PPOConfig.model_validate(ppo_run.spec.config))
    load_state(kept, fresh, learners(fresh))
    assert all(map(torch.equal, policy_parameters(fresh), states[0]))
    assert fresh.num_steps == 1 and fresh.bad_steps.count == 0


def test_demonstrations_are_mixed_in_and_have_to_fit(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "policy/ptx_loss" not in ppo_run.manifest["metrics"]
    kept = spy(monkeypatch, stage_module, "_demonstrations")
    found = _again(ppo_run, tmp_path, steps=1, ptx_coef=0.5)
    assert 0 < found.manifest["metrics"]["policy/ptx_loss"] < 20
    rows = kept[0][2]
    assert len(rows) == 100
    # The shortest prompt, and a response: exactly as much as the shortest demonstration needs, and one less.
    shortest, response = min(len(prompt) for prompt, _ in rows), len(rows[0][1])
    settings = {"steps": 1, "ptx_coef": 0.5, "max_prompt_tokens": shortest}
    rollout = {"engine": "hf", "max_new_tokens": response}
    _again(ppo_run, tmp_path / "fits", **settings, rollout=rollout)
    assert kept[1][2] == [row for row in rows if len(row[0]) == shortest]
    with pytest.raises(
        DataError,
        match=rf"ppo.ptx_coef=0.5 needs demonstrations, but none of 100 has at most {shortest + response - 1} tokens "
        r"\(ppo.max_prompt_tokens \+ ppo.rollout.max_new_tokens\); set `ppo.ptx_coef: 0` or raise one of the two",
    ):
        _again(ppo_run, tmp_path / "short", **settings, rollout=rollout | {"max_new_tokens": response - 1})


def test_checklist_46_the_learners_have_the_settings_of_the_section(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spy(monkeypatch, stage_module, "make_learner")
    steps = spy(monkeypatch, PPOTrainer, "step")
    settings = {"learning_rate": 0.01, "critic_learning_rate": 0.002, "adam_epsilon": 1e-3, "max_grad_norm": 0.7}
    _again(ppo_run, tmp_path, steps=1, **settings)
    _again(ppo_run, tmp_path / "default", steps=1, **settings | {"critic_learning_rate": None})
    assert [call[1]["learning_rate"] for call in made] == [0.01, 0.002, 0.01, 0.01]
    assert {(call[1]["adam_epsilon"], call[1]["max_grad_norm"]) for call in made} == {(1e-3, 0.7)}
    for first, ((trainer, _), _, _) in zip((0, 2), steps, strict=True):
        models = trainer.models
        critic = [*models.shared_base.parameters("critic"), *models.value_head.parameters()]
        for call, expected in zip(made[first : first + 2], (policy_parameters(trainer), critic), strict=True):
            assert [id(weight) for weight in call[0][0]] == [id(weight) for weight in expected]
