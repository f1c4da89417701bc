"""One step of PPO on a tiny Llama with generation by transformers and stub rewards, and what many of them learn."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.errors import StageError
from rewards.contract import Episode
from rewards.learned import LearnedReward
from stages.algorithms.masking import masked_mean, masked_var
from stages.models.scalar_head import ScoreHead, ScoreNormalization
from stages.models.score_model import SharedBaseScoreModel
from stages.models.tuning import score_weight
from stages.ppo import trainer as trainer_module
from stages.ppo import update as update_module
from stages.ppo.config import PPOConfig
from stages.ppo.trainer import PPOTrainer
from stages.rollouts.contract import Rollout
from tests.unit.stages.parts import PAD, FoldersOf, all_roles, same, snapshot
from tests.unit.stages.ppo.trainers import (
    PROMPTS,
    MakeTrainer,
    build_trainer,
    even_share,
    optimizer,
    policy_parameters,
    ppo_config,
    trained,
)


@pytest.fixture
def make(folders: FoldersOf) -> MakeTrainer:
    """Give a function that makes a trainer on fresh roles."""

    def build(config: PPOConfig | None = None, **parts: Any) -> PPOTrainer:
        return build_trainer(folders("llama"), config or ppo_config(), **parts)

    return build


def _spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any], Any]]:
    """Record the calls of a function with their results."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    original = getattr(owner, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append((args, kwargs, result))
        return result

    monkeypatch.setattr(owner, name, spy)
    return calls


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
    calls = _spy(monkeypatch, trainer.update, "_minibatch")
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
    judge = LearnedReward(SharedBaseScoreModel(shared, head, role="reward", pad_token_id=PAD, batch_size=4))
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
        original = trainer_module.ppo_policy_loss

        def nothing(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            return result._replace(loss=result.loss * 0.0)

        monkeypatch.setattr(trainer_module, "ppo_policy_loss", nothing)
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
    calls = _spy(monkeypatch, trainer.update, "_minibatch")
    trainer.step(PROMPTS)
    trainer.step(PROMPTS)
    rows = [args[2].tolist() for args, _, _ in calls]
    assert [len(minibatch) for minibatch in rows] == [4] * 12
    epochs = [rows[start] + rows[start + 1] for start in range(0, 12, 2)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_checklist_43_the_update_does_not_depend_on_the_microbatches(make: MakeTrainer) -> None:
    """EOS is made likely, so that responses differ in length and a mean of means would show."""
    ends = {token for token in range(0, 320, 4)}

    def cut(rollout: Rollout) -> Rollout:
        length = next((n + 1 for n, token in enumerate(rollout.response_ids) if token in ends), 6)
        return replace(rollout, response_ids=rollout.response_ids[:length], logprobs=rollout.logprobs[:length])

    found = {}
    for size in (1, 2, 4):
        trainer = make(ppo_config(microbatch_size=size, kl_placement="loss", kl_estimator="k2"), alter=cut, moved=True)
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


def test_checklist_49_batches_that_are_not_finite_are_skipped_counted_and_end_the_stage(
    make: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [True, False, True, True]

    def reward(episodes: Sequence[Episode]) -> list[float]:
        scores = even_share(episodes)
        return [math.nan, *scores[1:]] if broken.pop(0) else scores

    config = ppo_config(
        minibatch_size=8, num_ppo_epochs=1, max_bad_steps=1, steps=9, normalize_scores=True,
        kl_controller={"type": "adaptive", "target": 1.0, "horizon": 100},
    )  # fmt: skip
    trainer = make(config, reward=reward)
    before = snapshot(trained(trainer))
    with caplog.at_level(logging.WARNING):
        metrics = trainer.step(PROMPTS)
    assert "step 1: scores not finite; batch skipped" in caplog.text
    assert metrics["train/bad_steps"] == 1.0 and "policy/loss" not in metrics
    assert same(before, trained(trainer)) and trainer.bad_steps.count == 1 and trainer.num_steps == 1
    assert trainer.score_shaper.num_scores == 0 and trainer.kl_controller.value == config.kl_coef
    assert all(weight.grad is None for weight in trained(trainer))
    trainer.step(PROMPTS)
    assert trainer.bad_steps.count == 1 and not same(before, trained(trainer))
    before = snapshot(trained(trainer))
    with pytest.raises(StageError, match=r"2 batches or updates were not finite \(scores\).*max_bad_steps=1; lower"):
        trainer.step(PROMPTS)
    assert same(before, trained(trainer))
    assert all(bool(weight.isfinite().all()) for weight in before)


def test_checklist_49_a_batch_with_broken_logprobs_is_skipped(make: MakeTrainer) -> None:
    trainer = make(alter=lambda rollout: replace(rollout, logprobs=(math.nan,) * len(rollout.logprobs)))
    before = snapshot(trained(trainer))
    assert "policy/loss" not in trainer.step(PROMPTS)
    assert same(before, trained(trainer)) and trainer.bad_steps.count == 1


@pytest.mark.parametrize("which", ["ppo_policy_loss", "ppo_value_loss"])
def test_checklist_49_one_minibatch_alone_is_skipped(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    original, calls = getattr(update_module, which), []

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        result = original(*args, **kwargs)
        return result._replace(loss=result.loss * math.inf) if len(calls) == 3 else result

    monkeypatch.setattr(update_module, which, poisoned)
    trainer = make()
    states = []
    original_minibatch = trainer.update._minibatch

    def remember(*args: Any) -> Any:
        row = original_minibatch(*args)
        states.append(snapshot(trained(trainer)))
        return row

    monkeypatch.setattr(trainer.update, "_minibatch", remember)
    trainer.step(PROMPTS)
    # Four minibatches of two microbatches each; the third microbatch belongs to the second minibatch.
    assert trainer.bad_steps.count == 1
    assert [same(states[n], states[n + 1]) for n in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    ("settings", "last"), [({}, 2.0), ({"missing_eos_score": -1.0}, -1.0), ({"missing_eos_penalty": 0.5}, 1.5)]
)
def test_checklist_19_27_the_score_enters_once_and_a_missing_eos_costs(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, settings: dict[str, float], last: float
) -> None:
    """Every other episode ended by itself. KL is charged on every token, the score at the last one."""
    flags = [True, False] * 4

    def alter(rollout: Rollout) -> Rollout:
        length = 6 if len(flags) % 3 else 3
        cut = replace(rollout, response_ids=rollout.response_ids[:length], logprobs=rollout.logprobs[:length])
        return replace(cut, finished=flags.pop(0))

    trainer = make(ppo_config(kl_coef=0.3, **settings), reward=lambda e: [2.0] * len(e), alter=alter, moved=True)
    calls = _spy(monkeypatch, trainer_module, "step_metrics")
    gae = _spy(monkeypatch, trainer_module, "estimate_advantages")
    metrics = trainer.step(PROMPTS)
    (experience, _, rewards, _), mask = calls[0][0], calls[0][0][0].response_mask
    assert gae[0][0][0] is rewards
    k1 = experience.old_logprobs - experience.ref_logprobs
    assert k1.abs().max() > 0.01 and sorted(set(mask.sum(dim=1).tolist())) == [3, 6]
    expected = torch.zeros_like(k1)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        expected[row, :length] = -0.3 * k1[row, :length]
        expected[row, length - 1] += 2.0 if row % 2 == 0 else last
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-6)
    assert metrics["objective/scores"] == 2.0
    assert metrics["rollout/truncated_fraction"] == 0.5
    kl = k1.sum(dim=1).mean().item()
    assert metrics["objective/kl"] == pytest.approx(kl, abs=1e-6)
    assert metrics["objective/rewards"] == pytest.approx((2.0 + last) / 2 - 0.3 * kl, abs=1e-5)


def test_checklist_25_the_first_step_has_no_kl(make: MakeTrainer) -> None:
    trainer = make()
    assert trainer.step(PROMPTS)["objective/kl"] == 0.0
    assert abs(trainer.step(PROMPTS)["objective/kl"]) > 1e-4


def test_checklist_30_the_adaptive_coefficient_moves_after_the_step(make: MakeTrainer) -> None:
    controller = {"type": "adaptive", "target": 1e-6, "horizon": 100.0}
    trainer = make(ppo_config(kl_coef=0.5, kl_controller=controller), moved=True)
    metrics = trainer.step(PROMPTS)
    assert metrics["objective/kl"] > 0.01 and metrics["objective/kl_coef"] == 0.5
    expected = 0.5 * (1 + 0.2 * 8 / 100)
    assert trainer.kl_controller.value == pytest.approx(expected)
    assert trainer.step(PROMPTS)["objective/kl_coef"] == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_has_its_gradient_and_leaves_the_rewards_alone(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    config = ppo_config(
        kl_placement="loss", kl_estimator=estimator, kl_coef=0.7, num_ppo_epochs=1, minibatch_size=8,
        max_grad_norm=1e9,
    )  # fmt: skip
    trainer = make(config, reward=lambda episodes: [0.0] * len(episodes), moved=True)
    with torch.no_grad():  # neither value nor score: advantages are 0, the KL alone acts
        for parameter in trainer.models.value_head.parameters():
            parameter.zero_()
    adam = optimizer(trainer, "policy")
    calls = _spy(monkeypatch, trainer, "update")
    gradients: list[Tensor | None] = []
    monkeypatch.setattr(adam, "step", lambda: gradients.extend(weight.grad for weight in policy_parameters(trainer)))
    assert trainer.step(PROMPTS)["objective/rewards"] == 0.0
    experience, base = calls[0][0][0], trainer.models.shared_base
    batch = trainer.models.collate(experience.rollouts)
    with base.role("policy"):
        ratio = (base.training_logprobs(batch, temperature=1.0) - experience.ref_logprobs)[batch.response_mask]
        kl = 0.5 * ratio**2 if estimator == "k2" else torch.exp(-ratio) - 1 + ratio
        expected = torch.autograd.grad(0.7 * kl.mean(), policy_parameters(trainer))
    assert max(gradient.abs().max().item() for gradient in expected) > 0.01
    for found, wanted in zip(gradients, expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_scores_are_normalised_and_clipped_on_their_way_to_the_rewards(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = [-9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 20.0]
    deviation = torch.tensor(raw).std(correction=0).item()
    for settings, expected in (
        ({"score_clip": 4.5}, [-4.5, 1.0, 2.0, 3.0, 4.0, 4.5, 4.5, 4.5]),
        ({"normalize_scores": True}, [score / deviation for score in raw]),
        ({"normalize_scores": True, "score_clip": 1.0}, [max(min(s / deviation, 1.0), -1.0) for s in raw]),
    ):
        trainer = make(ppo_config(kl_coef=0.0, **settings), reward=lambda episodes: list(raw))
        calls = _spy(monkeypatch, trainer, "update")
        rewards = _spy(monkeypatch, trainer, "_rewards")
        metrics = trainer.step(PROMPTS)
        assert len(calls) == 1
        assert rewards[0][2].sum(dim=1).tolist() == pytest.approx(expected, abs=1e-5)
        assert metrics["objective/scores"] == pytest.approx(4.0)


def test_checklist_34_35_whitening_of_rewards_and_advantages(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for advantages, rewards in ((True, False), (False, False), (False, True)):
        trainer = make(ppo_config(whiten_advantages=advantages, whiten_rewards=rewards), moved=True)
        calls = _spy(monkeypatch, trainer, "update")
        shaped = _spy(monkeypatch, trainer, "_rewards")
        trainer.step(PROMPTS)
        experience, targets = calls[0][0]
        used, returns = targets.advantages, targets.returns
        found[advantages, rewards] = (experience.response_mask, used, returns, shaped[0][2], experience.values)
    mask, white, returns, reward, values = found[True, False]
    assert masked_mean(white, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert masked_var(white, mask).item() == pytest.approx(1.0, abs=1e-4)
    _, raw, raw_returns, raw_reward, _ = found[False, False]
    assert torch.equal(raw_reward, reward) and torch.equal(raw_returns, returns)
    torch.testing.assert_close(raw + values, returns)  # returns come from the unwhitened advantages
    _, _, _, scaled, _ = found[False, True]
    assert masked_mean(scaled, mask).item() == pytest.approx(masked_mean(reward, mask).item(), abs=1e-6)
    assert masked_var(scaled, mask).item() == pytest.approx(1.0, abs=1e-4)


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


@pytest.mark.parametrize("correct", [False, True])
def test_checklist_23_importance_weights_only_for_another_engine(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, correct: bool
) -> None:
    shifts = [0.0, 0.1, -0.1, 0.19] * 2

    def shifted(rollout: Rollout) -> Rollout:
        shift = shifts.pop(0)
        return replace(rollout, logprobs=tuple(value - shift for value in rollout.logprobs))

    calls = _spy(monkeypatch, update_module, "ppo_policy_loss")
    rollout = {"importance_cap": 1.15, "importance_sampling": "token_truncate" if correct else "auto"}
    config = ppo_config(rollout=rollout, num_ppo_epochs=1, minibatch_size=8, microbatch_size=8)
    make(config, alter=shifted).step(PROMPTS)
    weights = calls[0][1]["importance_weights"]
    if not correct:
        assert weights is None
        return
    # exp(0), exp(0.1) = 1.105, exp(-0.1) = 0.905 and exp(0.19) = 1.209, cut to 1.15; two rows each
    found = sorted(weights[:, 0].tolist())
    assert found == pytest.approx([0.9048] * 2 + [1.0] * 2 + [1.1052] * 2 + [1.15] * 2, abs=1e-3)


def test_checklist_17_all_logprobs_have_the_sampling_temperature(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were one of them at another temperature, the ratio, the KL or the gap to the engine would not be nil."""
    trainer = make(ppo_config(rollout={"temperature": 1.7}))
    calls = _spy(monkeypatch, trainer.update, "_minibatch")
    metrics = trainer.step(PROMPTS)
    assert metrics["rollout/logprob_delta_max"] < 1e-4
    assert metrics["objective/kl"] == 0.0
    assert calls[0][2][0]["policy/ratio"] == pytest.approx(1.0, abs=1e-5)


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


def test_learning_a_planted_target_with_and_without_a_leash(make: MakeTrainer, folders: FoldersOf) -> None:
    """Reward: the share of tokens with a positive first coordinate of the embedding, half of them at first.

    Such a set is within reach of an adapter on states of width 32; a random half of 320 tokens is not.
    """
    rows = all_roles(folders("llama")).peft_model.get_base_model().get_output_embeddings().weight
    planted = {token for token in range(len(rows)) if rows[token, 0] > 0}

    def share(episodes: Sequence[Episode]) -> list[float]:
        return [sum(token in planted for token in e.response_ids) / len(e.response_ids) for e in episodes]

    def learn(kl_coef: float) -> list[dict[str, float]]:
        sizes = {"steps": 15, "batch_size": 128, "minibatch_size": 64, "microbatch_size": 64}
        trainer = make(ppo_config(kl_coef=kl_coef, rollout={"max_new_tokens": 4}, **sizes), reward=share)
        with torch.no_grad():  # a critic that starts at random takes longer than these steps
            for parameter in trainer.models.value_head.parameters():
                parameter.zero_()
        return [trainer.step([[20 + number] for number in range(128)]) for _ in range(15)]

    def last(steps: list[dict[str, float]], name: str) -> float:
        return sum(step[name] for step in steps[-3:]) / 3

    free, leashed = learn(0.0), learn(1000.0)
    assert free[0]["objective/scores"] == pytest.approx(0.5, abs=0.08)
    assert last(free, "objective/scores") > 0.66
    assert last(free, "objective/kl") > 0.6
    assert abs(last(leashed, "objective/kl")) < 0.25
    assert last(leashed, "objective/scores") < 0.58
