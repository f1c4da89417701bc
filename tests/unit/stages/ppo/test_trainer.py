"""One step of PPO on a tiny Llama with generation by transformers and stub rewards."""

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from data.errors import StageError
from rewards.contract import Episode
from rewards.learned import LearnedReward
from stages.models.scalar_head import ScoreHead, ScoreNormalization
from stages.models.score_model import SharedBaseScoreModel
from stages.models.tuning import score_weight
from stages.ppo import update as update_module
from stages.rollouts.contract import Rollout
from tests.unit.stages.parts import PAD, FoldersOf, all_roles, same, snapshot
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, cut_short, optimizer, ppo_config, spy, trained


def test_a_step_reports_the_metrics_of_the_design(make: MakeTrainer) -> None:
    trainer = make()
    metrics = trainer.step(PROMPTS)
    names = """objective/kl objective/kl_coef objective/scores objective/rewards objective/entropy policy/loss
        policy/approx_kl policy/clip_fraction policy/ratio value/loss value/clip_fraction value/explained_variance
        rollout/response_length rollout/truncated_fraction rollout/tokens_per_second rollout/logprob_delta_rms
        time/generate_seconds time/score_seconds time/experience_seconds time/update_seconds time/sync_seconds
        time/step_seconds memory/peak_gib policy/grad_norm value/grad_norm"""
    assert set(names.split()) <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert trainer.num_steps == 1 and trainer.rollout_engine.version == 2


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_checklist_40_the_first_minibatch_has_ratio_one(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, folders: FoldersOf, gradient_checkpointing: bool
) -> None:
    shared = all_roles(folders("llama"))
    if gradient_checkpointing:
        shared.enable_gradient_checkpointing()
    trainer = make(shared=shared)
    calls = spy(monkeypatch, trainer.update, "_minibatch")
    trainer.step(PROMPTS)
    first, last = calls[0][2][0], calls[-1][2][0]
    assert first["policy/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["policy/clip_fraction"] == 0.0 and first["value/clip_fraction"] == 0.0
    assert first["policy/approx_kl"] < 1e-10
    assert last["policy/approx_kl"] > 1e-6, "the control: later minibatches have moved"


def test_checklist_16_48_the_reward_model_and_the_base_stay_as_they_are(make: MakeTrainer, folders: FoldersOf) -> None:
    own = folders("llama")
    shared = all_roles(own)
    head = ScoreHead(score_weight(own.reward), ScoreNormalization(0.1, 2.0))
    judge = LearnedReward(SharedBaseScoreModel(shared, {"reward": [head]}, pad_token_id=PAD, batch_size=4))
    trainer = make(reward=judge, shared=shared)
    frozen = [*shared.parameters("reward"), *shared.parameters("reference"), *head.parameters()]
    base = [weight for name, weight in shared.peft_model.named_parameters() if "lora_" not in name]
    before = snapshot([*frozen, *base])
    episodes = [Episode("", "", tuple(prompt), tuple(prompt), "", True) for prompt in PROMPTS]
    scores, moving = judge(episodes), snapshot(trained(trainer))
    for _ in range(2):
        trainer.step(PROMPTS)
    assert same(before, [*frozen, *base])
    assert judge(episodes) == scores
    assert all(weight.grad is None and not weight.requires_grad for weight in [*frozen, *base])
    assert not any(torch.equal(old, new) for old, new in zip(moving, trained(trainer), strict=True))


@pytest.mark.parametrize("silent", ["policy", "critic"])
def test_checklist_38_each_loss_moves_its_own_adapter_alone(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    if silent == "policy":
        original = update_module.ppo_policy_loss

        def nothing(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            return result._replace(loss=result.loss * 0.0)

        monkeypatch.setattr(update_module, "ppo_policy_loss", nothing)
    trainer = make(ppo_config(value_coef=0.0 if silent == "critic" else 0.1))
    base = trainer.models.shared_base
    before = {role: snapshot(base.parameters(role)) for role in ("policy", "critic")}
    trainer.step(PROMPTS)
    for role, weights in before.items():
        moved = [not torch.equal(old, new) for old, new in zip(weights, base.parameters(role), strict=True)]
        assert not any(moved) if role == silent else all(moved), role


def test_checklist_42_every_sample_once_an_epoch_in_a_fresh_order(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(ppo_config(num_ppo_epochs=3))
    calls = spy(monkeypatch, trainer.update, "_minibatch")
    trainer.step(PROMPTS)
    trainer.step(PROMPTS)
    rows = [args[2].tolist() for args, _, _ in calls]
    assert [len(minibatch) for minibatch in rows] == [4] * 12
    epochs = [rows[start] + rows[start + 1] for start in range(0, 12, 2)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_checklist_43_the_update_does_not_depend_on_the_microbatches(make: MakeTrainer) -> None:
    """Responses differ in length, so that a mean of means would show."""
    found = {}
    for size in (1, 2, 4):
        trainer = make(
            ppo_config(microbatch_size=size, kl_placement="loss", kl_estimator="k2"), alter=cut_short, moved=True
        )
        metrics = trainer.step(PROMPTS)
        assert 2 < metrics["rollout/response_length"] < 6
        found[size] = (snapshot(trained(trainer)), metrics["policy/grad_norm"], metrics["value/loss"])
    for size in (2, 4):
        for new, old in zip(found[size][0], found[1][0], strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=1e-4)
        assert found[size][1:] == pytest.approx(found[1][1:], rel=1e-3)


def test_checklist_46_adam_and_its_schedule(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(ppo_config(critic_learning_rate=0.02))
    (policy,), (critic,) = (optimizer(trainer, role).param_groups for role in ("policy", "critic"))
    assert policy["eps"] == critic["eps"] == 1e-5
    assert policy["weight_decay"] == critic["weight_decay"] == 0.0
    assert {id(weight) for weight in critic["params"]} >= {id(w) for w in trainer.models.value_head.parameters()}
    rates: list[tuple[float, float]] = []
    adam = optimizer(trainer, "critic")  # it steps after the policy's
    original = adam.step
    monkeypatch.setattr(adam, "step", lambda: (rates.append((policy["lr"], critic["lr"])), original())[1])
    for _ in range(3):
        trainer.step(PROMPTS)
    # 3 steps x 2 epochs x 2 minibatches: from the full rate down to 1/12 of it; the next would be 0.
    assert [rate for rate, _ in rates] == pytest.approx([0.01 * (12 - n) / 12 for n in range(12)])
    assert [rate for _, rate in rates] == pytest.approx([0.02 * (12 - n) / 12 for n in range(12)])


def test_checklist_47_the_same_run_twice_is_equal_bit_for_bit(make: MakeTrainer) -> None:
    weights, rows = [], []
    for random_state in (0, 1):
        torch.manual_seed(random_state)
        trainer = make()
        rows.append([trainer.step(PROMPTS) for _ in range(2)])
        weights.append(snapshot(trained(trainer)))
    assert same(*weights)
    for first, second in zip(*rows, strict=True):
        assert all(first[name] == second[name] for name in first if not name.startswith(("time", "memory", "rollout")))
    other = make(seed=6)
    other.step(PROMPTS)
    assert other.rollout_engine.seeds[0] != trainer.rollout_engine.seeds[0]  # type: ignore[attr-defined]
    assert len(set(map(tuple, trainer.rollout_engine.seeds))) == 2  # type: ignore[attr-defined]


def test_checklist_17_all_logprobs_have_the_sampling_temperature(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were one of them at another temperature, the ratio, the KL or the gap to the engine would not be nil."""
    trainer = make(ppo_config(rollout={"temperature": 1.7}))
    calls = spy(monkeypatch, trainer.update, "_minibatch")
    metrics = trainer.step(PROMPTS)
    assert metrics["rollout/logprob_delta_max"] < 1e-4
    assert metrics["objective/kl"] == 0.0
    assert calls[0][2][0]["policy/ratio"] == pytest.approx(1.0, abs=1e-5)


def test_checklist_20_an_engine_of_another_policy_ends_the_stage(make: MakeTrainer) -> None:
    def shifted(rollout: Rollout) -> Rollout:
        return replace(rollout, logprobs=tuple(value - 0.5 for value in rollout.logprobs))

    trainer = make(alter=shifted)
    before = snapshot(trained(trainer))
    with pytest.raises(
        StageError,
        match=r"step 1: log-probabilities of trainer and rollout engine differ by 0\.500 nats \(RMS\); at most "
        r"ppo\.rollout\.max_logprob_delta_rms=0\.2 .*`rollout.engine: hf` has no such gap",
    ):
        trainer.step(PROMPTS)
    assert same(before, trained(trainer))


def test_checklist_20_a_gap_of_other_base_weights_is_told_once_and_no_fault(
    make: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    def shifted(rollout: Rollout) -> Rollout:
        return replace(rollout, logprobs=tuple(value - 0.5 for value in rollout.logprobs))

    trainer = make(alter=shifted, same_weights=False)
    with caplog.at_level(logging.WARNING):
        metrics = [trainer.step(PROMPTS) for _ in range(2)]
    assert all(row["rollout/logprob_delta_rms"] == pytest.approx(0.5, abs=1e-4) for row in metrics)
    assert caplog.text.count("differ by 0.500 nats (RMS): the engine serves the original base weights") == 1


@pytest.mark.parametrize("placement", ["reward", "loss"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_checklist_28_a_biased_kl_is_named(
    make: MakeTrainer, folders: FoldersOf, caplog: pytest.LogCaptureFixture, placement: str, estimator: str
) -> None:
    with caplog.at_level(logging.WARNING):
        make(ppo_config(kl_placement=placement, kl_estimator=estimator))
    unbiased = (placement, estimator) in (("reward", "k1"), ("loss", "k2"))
    assert (f"ppo.kl_estimator={estimator} with ppo.kl_placement={placement} has" in caplog.text) == (not unbiased)
    assert ("expected gradient 0" in caplog.text) == ((placement, estimator) == ("loss", "k1"))
