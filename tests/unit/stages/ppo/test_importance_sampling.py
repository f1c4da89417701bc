"""Importance weights on their way from engine and trainer into the policy loss."""

import math
from dataclasses import replace

import pytest

from stages.rollouts.config import RolloutConfig
from stages.rollouts.contract import Rollout
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, cut_short, ppo_config, spy

CAP = 1.08
SHIFTS = (0.0, 0.1, -0.1, 0.05)


def shifted(rollout: Rollout) -> Rollout:
    """Let the engine be surer or less sure than the trainer, by each of these nats in turn."""
    cut = cut_short(rollout)
    return replace(cut, logprobs=tuple(p - SHIFTS[t % 4] for t, p in enumerate(cut.logprobs)))


def _expected(old: list[float], engine: list[float], level: str, mode: str) -> tuple[list[float], int]:
    """Weights of one response, and how many are above the cap."""
    gaps = [a - b for a, b in zip(old, engine, strict=True)]
    raw = [math.exp(sum(gaps) if level == "sequence" else gap) for gap in gaps]
    return [w if w <= CAP else (CAP if mode == "truncate" else 0.0) for w in raw], sum(w > CAP for w in raw)


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_checklist_23_weights_of_each_mode(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, level: str, mode: str
) -> None:
    rollout = {"importance_cap": CAP, "importance_sampling": f"{level}_{mode}"}
    trainer = make(ppo_config(rollout=rollout), alter=shifted)
    calls = spy(monkeypatch, trainer, "update")
    metrics = trainer.step(PROMPTS)
    experience, targets = calls[0][0]
    found, expected, num_cut = [], [], 0
    for row, one in enumerate(experience.rollouts):
        length = len(one.response_ids)
        weights, above = _expected(experience.old_logprobs[row, :length].tolist(), list(one.logprobs), level, mode)
        found += targets.importance_weights[row, :length].tolist()
        expected += weights
        num_cut += above
    assert found == pytest.approx(expected, abs=1e-5)
    assert 0 < num_cut < len(expected)
    assert bool((targets.importance_weights[~experience.response_mask] == 1.0).all())
    assert metrics["rollout/importance_weight_mean"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert metrics["rollout/importance_clipped_fraction"] == pytest.approx(num_cut / len(expected))


@pytest.mark.parametrize(("engine", "corrects"), [("hf", False), ("vllm", True), ("vllm_server", True)])
def test_checklist_23_auto_corrects_where_another_engine_samples(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, engine: str, corrects: bool
) -> None:
    trainer = make(ppo_config(rollout={"engine": engine}))
    calls = spy(monkeypatch, trainer, "update")
    metrics = trainer.step(PROMPTS)
    weights = calls[0][0][1].importance_weights
    assert (weights is not None) == corrects
    assert ("rollout/importance_weight_mean" in metrics) == corrects
    if corrects:  # and where the two agree, every token weighs 1
        assert weights.flatten().tolist() == pytest.approx([1.0] * weights.numel(), abs=1e-4)
        assert metrics["rollout/importance_clipped_fraction"] == 0.0


def test_the_correction_that_a_configuration_names() -> None:
    def of(**settings: str) -> object:
        return RolloutConfig.model_validate(settings).correction

    for level in ("token", "sequence"):
        for mode in ("truncate", "mask"):
            for engine in ("hf", "vllm"):
                assert of(engine=engine, importance_sampling=f"{level}_{mode}") == (level, mode)
    assert of(engine="vllm") == of(engine="vllm_server") == ("token", "truncate")
    assert of(engine="hf") is None
    assert of(engine="vllm", importance_sampling="off") is None
