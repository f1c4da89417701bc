"""One optimizer over microbatches and ranks: two real processes compute what one computes, and what AdamW says."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from stages.learner import ReplicatedLearner
from stages.ranks import Ranks
from tests.ranks import run_on_ranks
from tests.unit.stages import on_ranks

Found = dict[str, Any]


@pytest.fixture(scope="module")
def alone() -> Found:
    """Give the life of a learner in this process."""
    return on_ranks.replicated(Ranks())


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Give the same life on two ranks, which share the microbatches."""
    return run_on_ranks("tests.unit.stages.on_ranks:replicated", tmp_path_factory.mktemp("ranks"), size=2)


def _adam(
    steps: list[tuple[float, float]], *, epsilon: float, max_norm: float = math.inf, start: float = 0.1
) -> tuple[list[float], list[float]]:
    """Weights after the last of these steps, given as (scale of the loss, learning rate), and the norms; in float64.

    AdamW as Kingma and Ba 2015 have it, betas 0.9 and 0.999, without decay.
    """
    held = [nn.Parameter(parameter.double()) for parameter in on_ranks.parameters()]
    first = [torch.zeros_like(parameter) for parameter in held]
    second = [torch.zeros_like(parameter) for parameter in held]
    norms = []
    for number, (scale, rate) in enumerate(steps, start=1):
        loss = torch.zeros((), dtype=torch.float64)
        for batch in range(on_ranks.NUM_MICROBATCHES):
            data = torch.randn(batch + 1, 3, generator=torch.Generator().manual_seed(100 + batch)).double()
            loss = loss + scale * torch.tanh(data @ held[0] + held[1]).square().sum()
        loss = loss + scale * held[2].square().sum()
        gradients = torch.autograd.grad(loss, held)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        norms.append(norm)
        factor = min(1.0, max_norm / norm)
        with torch.no_grad():
            for parameter, gradient, m, v in zip(held, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * factor * gradient)
                v.mul_(0.999).add_(0.001 * (factor * gradient) ** 2)
                estimate = (v / (1 - 0.999**number)).sqrt() + epsilon
                parameter.sub_(rate * m / (1 - 0.9**number) / estimate)
    return on_ranks.weights(held), norms


def test_a_learner_is_adamw_on_the_sum_of_the_shares(alone: Found) -> None:
    first, norms = _adam([(1.0, 0.1)], epsilon=1e-5)
    assert alone["norm"] == pytest.approx(norms[0], rel=1e-5)
    assert alone["first"] == pytest.approx(first, abs=1e-5)
    assert alone["second"] == pytest.approx(_adam([(1.0, 0.1), (0.3, 0.05)], epsilon=1e-5)[0], abs=1e-5)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told(alone: Found) -> None:
    expected, norms = _adam([(1.0, 0.1)], epsilon=1.0, max_norm=0.5)
    assert norms[0] > 2.0
    assert alone["norm_before_clipping"] == pytest.approx(norms[0], rel=1e-5)
    assert alone["clipped"] == pytest.approx(expected, abs=1e-5)
    unclipped, _ = _adam([(1.0, 0.1)], epsilon=1.0)
    assert alone["clipped"] != pytest.approx(unclipped, abs=1e-3), "the control: with so large an epsilon it shows"


def test_checklist_49_what_is_not_applied_leaves_weights_and_moments(alone: Found) -> None:
    assert alone["norm_of_a_step_not_made"] > 10 * alone["norm"]
    assert alone["not_applied"] == alone["after_nan"] == alone["second"]
    assert not math.isfinite(alone["norm_of_nan"]) and not math.isfinite(alone["norm_of_infinity"])
    assert not alone["gradients_left"]
    # The step after them is the third of AdamW, as if nothing had been in between.
    expected, _ = _adam([(1.0, 0.1), (0.3, 0.05), (0.7, 0.025)], epsilon=1e-5)
    assert alone["third"] == pytest.approx(expected, abs=1e-5)


def test_checklist_50_a_loaded_state_goes_on_bit_for_bit(alone: Found, together: list[Found]) -> None:
    for found in (alone, *together):
        assert found["loaded"] == found["third"] != found["second"]


def test_checklist_43_two_ranks_compute_what_one_process_computes(alone: Found, together: list[Found]) -> None:
    # Sums of float32 in another order. One rank's NaN is everyone's.
    for found in together:
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            if name in ("norm_of_nan", "norm_of_infinity"):
                assert not math.isfinite(found[name])
            else:
                assert found[name] == pytest.approx(expected, rel=1e-5, abs=1e-5), name
    assert together[0]["third"] == together[1]["third"]


def test_a_parameter_without_gradient_on_one_rank_counts_as_zero_there(alone: Found, together: list[Found]) -> None:
    start = on_ranks.weights(on_ranks.parameters())
    for found in (alone, *together):
        assert found["one_rank"][12:] == start[12:]
        moves = [abs(new - old) for new, old in zip(found["one_rank"][:12], start[:12], strict=True)]
        assert moves == pytest.approx([0.1] * 12, rel=1e-3)


def test_no_weight_decays_where_there_is_no_gradient() -> None:
    held = on_ranks.parameters()
    learner = ReplicatedLearner(held, learning_rate=0.1, adam_epsilon=1e-5, max_grad_norm=1.0, ranks=Ranks())
    learner.backward(0.0 * sum(parameter.sum() for parameter in held))
    assert learner.finish(apply=True) == 0.0
    assert on_ranks.weights(held) == on_ranks.weights(on_ranks.parameters())
