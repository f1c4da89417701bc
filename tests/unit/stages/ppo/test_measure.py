"""Metrics of a step, by hand arithmetic."""

import pytest
import torch

from stages.ppo.experience import Experience
from stages.ppo.measure import StepClock, mean_rows, step_metrics
from stages.rollouts.contract import Rollout

MASK = torch.tensor([[True, True, False], [True, False, False]])


def _experience() -> Experience:
    rollouts = [Rollout((1,), (5, 6), (-1.0, -2.0), True), Rollout((1,), (7,), (-3.0,), False)]
    return Experience(
        rollouts=rollouts,
        response_mask=MASK,
        rollout_logprobs=torch.tensor([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0]]),
        old_logprobs=torch.tensor([[-1.1, -2.0, 9.0], [-2.8, 9.0, 9.0]]),
        ref_logprobs=torch.tensor([[-1.6, -3.0, 1.0], [-2.3, 1.0, 1.0]]),
        values=torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]),
        entropy=torch.tensor([[1.0, 2.0, 9.0], [6.0, 9.0, 9.0]]),
    )


def test_checklist_44_step_metrics_are_masked() -> None:
    returns = torch.tensor([[2.0, 2.0, 9.0], [5.0, 9.0, 9.0]])
    rewards = torch.tensor([[-0.5, 2.0, 0.0], [1.0, 0.0, 0.0]])
    found = step_metrics(_experience(), torch.tensor([2.0, 4.0]), rewards, returns, kl_coef=0.3)
    assert found["objective/kl"] == pytest.approx(0.5)  # rows: 0.5 + 1.0 and -0.5
    assert found["objective/kl_stderr"] == pytest.approx(1.0)  # 1.5 and -0.5: deviation sqrt(2), over sqrt(2)
    assert found["objective/kl_coef"] == 0.3
    assert found["objective/scores"] == 3.0 and found["objective/scores_std"] == 1.0
    assert found["objective/rewards"] == pytest.approx(1.25)  # rows: 1.5 and 1.0
    assert found["objective/entropy"] == pytest.approx(3.0)  # (1 + 2 + 6) / 3
    # returns 2, 2, 5: variance 2; residuals 1, 0, 2: variance 2 / 3
    assert found["value/explained_variance"] == pytest.approx(1 - 1 / 3)
    assert found["value/mean"] == pytest.approx(2.0)
    assert found["rollout/response_length"] == 1.5
    assert found["rollout/truncated_fraction"] == 0.5
    # deltas -0.1, 0, 0.2
    assert found["rollout/logprob_delta_mean"] == pytest.approx(0.1 / 3, abs=1e-6)
    assert found["rollout/logprob_delta_rms"] == pytest.approx((0.05 / 3) ** 0.5, abs=1e-6)
    assert found["rollout/logprob_delta_max"] == pytest.approx(0.2, abs=1e-6)


def test_one_response_has_no_standard_error_and_no_critic_no_values() -> None:
    both = _experience()
    one = Experience(
        both.rollouts[:1], MASK[:1], both.rollout_logprobs[:1], both.old_logprobs[:1], both.ref_logprobs[:1],
        both.entropy[:1], None,
    )  # fmt: skip
    found = step_metrics(one, torch.tensor([2.0]), torch.zeros(1, 3), None, kl_coef=0.0)
    assert found["objective/kl"] == pytest.approx(1.5) and found["objective/kl_stderr"] == 0.0
    assert not [name for name in found if name.startswith("value/")]


def test_rows_are_averaged() -> None:
    assert mean_rows([{"a": 1.0, "b": 0.0}, {"a": 3.0, "b": 1.0}]) == {"a": 2.0, "b": 0.5}


def test_the_clock_adds_up_parts() -> None:
    clock = StepClock()
    for part in ("generate", "update", "generate"):
        with clock.measure(part):
            pass
    found = clock.metrics(num_tokens=30)
    assert found.keys() == {
        "time/generate_seconds", "time/update_seconds", "time/step_seconds", "rollout/tokens_per_second",
        "memory/peak_gib",
    }  # fmt: skip
    assert found["rollout/tokens_per_second"] == pytest.approx(30 / max(found["time/generate_seconds"], 1e-9))
    assert 0.01 < found["memory/peak_gib"] < 1000
