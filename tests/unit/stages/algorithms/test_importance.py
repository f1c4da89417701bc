"""Importance weights by hand and against a Python loop: tokens and sequences, truncated and masked."""

import itertools
import math
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from stages.algorithms.importance import ImportanceWeights, clamp_log_ratio, importance_weights

NAN = float("nan")
LENGTHS = (2, 6, 0, 4)
MASK = torch.arange(6).unsqueeze(0) < torch.tensor(LENGTHS).unsqueeze(1)  # 12 tokens
KINDS = list(itertools.product(["token", "sequence"], ["truncate", "mask"]))


def random_pair(seed: int = 6) -> tuple[Tensor, Tensor]:
    """Float64 log-probabilities [4, 6] of trainer and engine, about half a nat apart."""
    generator = torch.Generator().manual_seed(seed)
    old, gap = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64).unbind(0)
    return old, old - 0.5 * gap


def weigh(
    gaps: list[list[float]], mask: list[list[int]] | None = None, *, level: Any, mode: Any, cap: float = 2.0
) -> ImportanceWeights:
    """Weights where old - rollout is as given, all tokens counting unless a mask says otherwise."""
    old = torch.tensor(gaps)
    kept = torch.ones_like(old) if mask is None else torch.tensor(mask)
    return importance_weights(old, torch.zeros_like(old), kept > 0, level=level, mode=mode, cap=cap)


def test_checklist_45_log_ratio_is_bounded_and_normal_values_pass_unaltered() -> None:
    log_ratio = torch.tensor([-1e9, -20.5, -19.5, -1.0, 0.0, 1e-7, 19.5, 20.5, math.inf])
    expected = torch.tensor([-20.0, -20.0, -19.5, -1.0, 0.0, 1e-7, 19.5, 20.0, 20.0])
    assert torch.equal(clamp_log_ratio(log_ratio), expected)
    assert clamp_log_ratio(log_ratio).exp().isfinite().all()


def test_checklist_23_token_weights_are_trainer_over_rollout_and_truncated() -> None:
    old = torch.tensor([[-1.0, -1.0, -1.0, -1.0, -1.0]])
    rollout = torch.tensor([[-1.0, -0.5, -1.4, -9.0, -1.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    weights, clipped_fraction = importance_weights(old, rollout, mask, level="token", mode="truncate", cap=2.0)
    # exp(0) = 1, exp(-0.5) = 0.6065307, exp(0.4) = 1.4918247, exp(8) = 2981 cut to 2
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.6065307, 1.4918247, 2.0, 1.0]]))
    assert weights[0, 0] == 1 and weights[0, 4] == 1
    assert clipped_fraction.item() == pytest.approx(0.2)


def test_checklist_23_token_weights_above_the_cap_are_masked_to_zero() -> None:
    weights, clipped_fraction = weigh([[0.0, -0.5, 0.4, 8.0]], level="token", mode="mask")
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.6065307, 1.4918247, 0.0]]))
    assert clipped_fraction.item() == 0.25


@pytest.mark.parametrize(
    ("mode", "cap", "expected", "clipped"),
    [
        # sums 0.5, 1.0 and -0.4 over 3, 1 and 2 tokens: exp(0.5) = 1.6487213, exp(1) = 2.7182818, exp(-0.4) = 0.67032
        ("truncate", 2.0, [[1.6487213] * 3, [2.0, 1.0, 1.0], [0.67032, 0.67032, 1.0]], 1 / 6),
        ("mask", 2.0, [[1.6487213] * 3, [0.0, 1.0, 1.0], [0.67032, 0.67032, 1.0]], 1 / 6),
        ("truncate", 1.5, [[1.5] * 3, [1.5, 1.0, 1.0], [0.67032, 0.67032, 1.0]], 4 / 6),
        ("mask", 1.5, [[0.0] * 3, [0.0, 1.0, 1.0], [0.67032, 0.67032, 1.0]], 4 / 6),
    ],
)
def test_checklist_23_sequence_weights_are_the_ratio_of_the_whole_response(
    mode: str, cap: float, expected: list[list[float]], clipped: float
) -> None:
    gaps = [[0.5, -0.25, 0.25], [1.0, 7.0, 7.0], [-0.2, -0.2, 7.0]]
    found = weigh(gaps, [[1, 1, 1], [1, 0, 0], [1, 1, 0]], level="sequence", mode=mode, cap=cap)
    torch.testing.assert_close(found.weights, torch.tensor(expected))
    assert found.clipped_fraction.item() == pytest.approx(clipped)


@pytest.mark.parametrize(("level", "mode"), KINDS)
@pytest.mark.parametrize("cap", [1.0, 1.5, 2.0])
def test_checklist_23_weights_equal_a_python_loop(level: Any, mode: Any, cap: float) -> None:
    old, rollout = random_pair()
    found = importance_weights(old, rollout, MASK, level=level, mode=mode, cap=cap)
    cut = 0
    for b, length in enumerate(LENGTHS):
        gaps = [(old[b, t] - rollout[b, t]).item() for t in range(length)]
        for t in range(6):
            ratio = 1.0
            if t < length:
                ratio = math.exp(sum(gaps) if level == "sequence" else gaps[t])
                cut += ratio > cap
            expected = ratio if ratio <= cap else cap if mode == "truncate" else 0.0
            assert found.weights[b, t].item() == pytest.approx(expected, abs=1e-12)
    assert found.clipped_fraction.item() == pytest.approx(cut / 12)
    assert 0 < cut < 12


@pytest.mark.parametrize(("level", "mode"), KINDS)
def test_checklist_23_importance_weights_are_one_where_the_two_match_and_on_padding(level: Any, mode: Any) -> None:
    old, other = random_pair(4)
    for cap in (1.0, 2.0):
        found = importance_weights(old, old.clone(), MASK, level=level, mode=mode, cap=cap)
        assert torch.equal(found.weights, torch.ones_like(old))
        assert found.clipped_fraction.item() == 0.0
    assert torch.equal(
        importance_weights(old, other, MASK, level=level, mode=mode, cap=2.0).weights[~MASK],
        torch.ones(12, dtype=torch.float64),
    )


@pytest.mark.parametrize(("level", "mode"), KINDS)
@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf, 1e9])
def test_padding_never_enters_the_weights(level: Any, mode: Any, garbage: float) -> None:
    old, rollout = random_pair()
    expected = importance_weights(old, rollout, MASK, level=level, mode=mode, cap=1.5)
    for x, y in ((old.masked_fill(~MASK, garbage), rollout), (old, rollout.masked_fill(~MASK, garbage))):
        actual = importance_weights(x, y, MASK, level=level, mode=mode, cap=1.5)
        assert torch.equal(actual.weights, expected.weights)
        assert torch.equal(actual.clipped_fraction, expected.clipped_fraction)


@pytest.mark.parametrize(("level", "mode"), KINDS)
def test_permuted_rows_permute_the_weights(level: Any, mode: Any) -> None:
    (old, rollout), order = random_pair(), torch.tensor([2, 0, 3, 1])
    expected = importance_weights(old, rollout, MASK, level=level, mode=mode, cap=1.5)
    actual = importance_weights(old[order], rollout[order], MASK[order], level=level, mode=mode, cap=1.5)
    assert torch.equal(actual.weights, expected.weights[order])
    assert torch.equal(actual.clipped_fraction, expected.clipped_fraction)


@pytest.mark.parametrize(("level", "mode"), KINDS)
def test_a_batch_without_response_tokens_has_weights_of_one(level: Any, mode: Any) -> None:
    weights, clipped_fraction = weigh([[9.0, NAN]], [[0, 0]], level=level, mode=mode)
    assert weights.tolist() == [[1.0, 1.0]]
    assert clipped_fraction.item() == 0.0


def test_one_token_has_the_same_weight_at_both_levels() -> None:
    gaps = [[0.3], [-2.0], [4.0]]
    for mode in ("truncate", "mask"):
        assert weigh([[4.0]], level="token", mode=mode).clipped_fraction.item() == 1.0
        by_level = [weigh(gaps, level=level, mode=mode).weights for level in ("token", "sequence")]
        assert torch.equal(by_level[0], by_level[1])


def test_sequences_are_bounded_after_the_sum_and_not_before() -> None:
    # 30 - 29 = 1; bounded first, it would be 20 - 20 = 0
    together = weigh([[30.0, -29.0]], level="sequence", mode="truncate", cap=1e12)
    torch.testing.assert_close(together.weights, torch.full((1, 2), math.e))
    far = weigh([[15.0, 15.0], [-15.0, -15.0]], level="sequence", mode="truncate", cap=1e12)
    torch.testing.assert_close(far.weights, torch.tensor([[math.exp(20)] * 2, [math.exp(-20)] * 2]))


@pytest.mark.parametrize(("level", "mode"), KINDS)
def test_importance_weights_are_constants_and_finite(level: Any, mode: Any) -> None:
    old = torch.tensor([[500.0], [-1.0]], requires_grad=True)
    rollout = torch.zeros(2, 1, requires_grad=True)
    found = importance_weights(old, rollout, torch.ones(2, 1) > 0, level=level, mode=mode, cap=1e12)
    assert not found.weights.requires_grad and not found.clipped_fraction.requires_grad
    torch.testing.assert_close(found.weights, torch.tensor([[math.exp(20)], [math.exp(-1)]]))


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_a_weight_equal_to_the_cap_is_not_cut(mode: str) -> None:
    gap, above = math.log(2.0), math.log(2.001)
    cap = torch.tensor(gap).exp().item()
    found = weigh([[gap, above]], level="token", mode=mode, cap=cap)
    assert found.weights[0, 0].item() == cap
    assert found.clipped_fraction.item() == 0.5


@pytest.mark.parametrize("cap", [0.99, 0.0, -1.0, NAN])
def test_a_cap_below_one_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match=rf"cap={cap} is below 1, so tokens with equal log-probabilities"):
        weigh([[0.0]], level="token", mode="truncate", cap=cap)


def test_unknown_levels_and_modes_are_refused() -> None:
    for level, mode, match in (
        ("batch", "mask", "level='batch' is unknown; use 'token' or 'sequence'"),
        ("token", "drop", "mode='drop' is unknown; use 'truncate' or 'mask'"),
    ):
        with pytest.raises(
            (ValueError, TypeCheckError), match=f"{match}|Type-check error"
        ):  # the latter under the hook
            weigh([[0.0]], level=level, mode=mode)
