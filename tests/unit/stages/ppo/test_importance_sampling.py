"""Importance weights on their way from engine and trainer into the policy loss."""

from dataclasses import replace

import pytest

from stages.ppo import update as update_module
from stages.rollouts.contract import Rollout
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, ppo_config, spy


@pytest.mark.parametrize("correct", [False, True])
def test_checklist_23_importance_weights_only_for_another_engine(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, correct: bool
) -> None:
    shifts = [0.0, 0.1, -0.1, 0.19] * 2

    def shifted(rollout: Rollout) -> Rollout:
        shift = shifts.pop(0)
        return replace(rollout, logprobs=tuple(value - shift for value in rollout.logprobs))

    calls = spy(monkeypatch, update_module, "ppo_policy_loss")
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
