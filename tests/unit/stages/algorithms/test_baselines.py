"""Critic-free advantages: numbers by hand, the `statistics` module as oracle, and relations among the estimators."""

import itertools
import math
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages.algorithms.advantages import estimate_gae
from stages.algorithms.baselines import estimate_grpo, estimate_reinforce_plus_plus, estimate_rloo
from stages.algorithms.masking import masked_whiten

NAN = float("nan")
LENGTHS = (1, 3, 6, 7, 2, 5)
MASK = torch.arange(7).unsqueeze(0) < torch.tensor(LENGTHS).unsqueeze(1)
PROMPTS = torch.tensor([5, -1, 5, -1, 5, -1])

Grouped = Callable[..., Tensor]
GROUPED = [estimate_rloo, estimate_grpo]


def random_rewards(seed: int = 0) -> Tensor:
    """Float64 rewards of three responses to each of two prompts, lengths 1 to 7 of 7."""
    return torch.randn(6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def returns_of(rewards: Tensor) -> list[float]:
    """The sum of each row's response tokens, in Python floats."""
    return [math.fsum(row[:length]) for row, length in zip(rewards.tolist(), LENGTHS, strict=True)]


def one_token(returns: list[float], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Responses of one token each, with these returns, and their mask."""
    return torch.tensor(returns, dtype=dtype).unsqueeze(1), torch.ones(len(returns), 1, dtype=torch.bool)


# --- RLOO ---


def test_rloo_golden() -> None:
    rewards = torch.tensor([[1.0, 2.0, 9.0], [4.0, -2.0, 1.0], [10.0, 9.0, 9.0], [-6.0, 0.0, 0.0], [5.0, 9.0, 9.0]])
    mask = torch.tensor(
        [[True, True, False], [True, True, True], [True, False, False], [True, True, True], [True, False, False]]
    )
    advantages = estimate_rloo(rewards, mask, prompt_index=torch.tensor([3, 8, 3, 8, 3]))
    # prompt 3 has returns 3, 10, 5: 3 - 15/2, 10 - 8/2, 5 - 13/2; prompt 8 has 3 and -6
    expected = torch.tensor([[-4.5, -4.5, 0.0], [9.0, 9.0, 9.0], [6.0, 0.0, 0.0], [-9.0, -9.0, -9.0], [-1.5, 0.0, 0.0]])
    torch.testing.assert_close(advantages, expected)


def test_rloo_equals_a_python_loop() -> None:
    rewards = random_rewards()
    returns = returns_of(rewards)
    advantages = estimate_rloo(rewards, MASK, prompt_index=PROMPTS)
    for i in range(6):
        others = [returns[j] for j in range(6) if j != i and PROMPTS[j] == PROMPTS[i]]
        expected = [(returns[i] - sum(others) / len(others)) * (t < LENGTHS[i]) for t in range(7)]
        assert advantages[i].tolist() == pytest.approx(expected, abs=1e-12)


def test_rloo_of_two_responses_is_their_difference() -> None:
    rewards, mask = one_token([0.25, -1.5])
    assert estimate_rloo(rewards, mask, prompt_index=torch.tensor([0, 0])).tolist() == [[1.75], [-1.75]]


def test_rloo_advantages_of_a_prompt_add_up_to_zero() -> None:
    advantages = estimate_rloo(random_rewards(), MASK, prompt_index=PROMPTS)[:, 0]
    for prompt in (5, -1):
        assert advantages[PROMPTS == prompt].sum().item() == pytest.approx(0.0, abs=1e-12)
    assert advantages.abs().min() > 0.01


def test_rloo_has_the_expected_gradient_of_reinforce_without_a_baseline() -> None:
    """By enumeration of all pairs of samples of a three-way categorical: the baseline costs no bias."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    scores = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    probabilities = logits.softmax(-1)
    score_gradients = torch.eye(3, dtype=torch.float64) - probabilities  # d log p(token) / d logits
    found = torch.zeros(3, dtype=torch.float64)
    for pair in itertools.product(range(3), repeat=2):
        tokens = list(pair)
        advantages = estimate_rloo(
            scores[tokens].unsqueeze(1), torch.ones(2, 1, dtype=torch.bool), prompt_index=torch.tensor([0, 0])
        )
        found += probabilities[tokens].prod() * (advantages * score_gradients[tokens]).mean(dim=0)
    expected = probabilities * (scores - (probabilities * scores).sum())
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


# --- GRPO ---


def test_grpo_golden() -> None:
    rewards, mask = one_token([1.0, 6.0, 3.0, 6.0, 8.0], torch.float64)
    advantages = estimate_grpo(rewards, mask, prompt_index=torch.tensor([0, 4, 0, 4, 0]))
    # prompt 0 has 1, 3, 8: mean 4, variance (9 + 1 + 16) / 2 = 13; prompt 4 has 6 twice
    spread = math.sqrt(13) + 1e-4
    assert advantages[:, 0].tolist() == pytest.approx([-3 / spread, 0.0, -1 / spread, 0.0, 4 / spread], abs=1e-12)


def test_grpo_equals_a_python_loop() -> None:
    rewards = random_rewards(1)
    returns = returns_of(rewards)
    advantages = estimate_grpo(rewards, MASK, prompt_index=PROMPTS)
    for i in range(6):
        group = [returns[j] for j in range(6) if PROMPTS[j] == PROMPTS[i]]
        advantage = (returns[i] - statistics.mean(group)) / (statistics.stdev(group) + 1e-4)
        assert advantages[i].tolist() == pytest.approx([advantage * (t < LENGTHS[i]) for t in range(7)], abs=1e-12)


@pytest.mark.parametrize("value", [0.1, -300.7, 1e6])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_grpo_of_equal_returns_is_zero(value: float, size: int) -> None:
    rewards, mask = one_token([value] * size)
    advantages = estimate_grpo(rewards, mask, prompt_index=torch.zeros(size, dtype=torch.long))
    assert torch.equal(advantages, torch.zeros(size, 1))


def test_grpo_is_invariant_to_shift_and_to_positive_scale_but_for_its_epsilon() -> None:
    rewards, mask = one_token([1.0, -0.5, 2.0, 7.0], torch.float64)
    index = torch.zeros(4, dtype=torch.long)
    expected = estimate_grpo(rewards, mask, prompt_index=index)
    shifted = estimate_grpo(rewards + 11.0, mask, prompt_index=index)
    torch.testing.assert_close(shifted, expected, rtol=0.0, atol=1e-12)
    scaled = estimate_grpo(5.0 * rewards, mask, prompt_index=index)
    # the standard deviation is 3.25; epsilon is 3e-5 of it, and 6e-6 of five times it
    torch.testing.assert_close(scaled, expected, rtol=3e-5, atol=0.0)
    assert not torch.equal(scaled, expected)
    torch.testing.assert_close(estimate_grpo(-rewards, mask, prompt_index=index), -expected, rtol=0.0, atol=1e-12)


# --- both that compare the responses of a prompt ---


@pytest.mark.parametrize("estimate", GROUPED)
@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf, 1e30])
def test_padding_never_enters_a_group(estimate: Grouped, garbage: float) -> None:
    rewards = random_rewards()
    expected = estimate(rewards, MASK, prompt_index=PROMPTS)
    actual = estimate(rewards.masked_fill(~MASK, garbage), MASK, prompt_index=PROMPTS)
    assert torch.equal(actual, expected)
    assert torch.equal(actual[~MASK], torch.zeros(18, dtype=torch.float64))


@pytest.mark.parametrize("estimate", GROUPED)
def test_gaps_in_a_response_are_left_out(estimate: Grouped) -> None:
    mask = torch.tensor([[True, False, True], [True, True, True]])
    rewards = torch.tensor([[1.0, NAN, 2.0], [1.0, 1.0, 1.0]])
    advantages = estimate(rewards, mask, prompt_index=torch.tensor([0, 0]))
    assert torch.equal(advantages, torch.zeros(2, 3))  # both returns are 3


@pytest.mark.parametrize("estimate", GROUPED)
def test_permuted_rows_permute_the_advantages_and_names_of_prompts_do_not_matter(estimate: Grouped) -> None:
    rewards, order = random_rewards(), torch.tensor([4, 0, 5, 2, 1, 3])
    expected = estimate(rewards, MASK, prompt_index=PROMPTS)
    permuted = estimate(rewards[order], MASK[order], prompt_index=PROMPTS[order])
    torch.testing.assert_close(permuted, expected[order], rtol=0.0, atol=1e-14)
    for names in ((0, 1), (1, 0), (-7, 10**12)):
        renamed = torch.where(PROMPTS == 5, names[0], names[1])
        torch.testing.assert_close(estimate(rewards, MASK, prompt_index=renamed), expected, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("estimate", GROUPED)
def test_prompts_do_not_touch_one_another(estimate: Grouped) -> None:
    rewards = random_rewards()
    expected = estimate(rewards, MASK, prompt_index=PROMPTS)
    changed = rewards.clone()
    changed[PROMPTS == -1] += 100.0
    actual = estimate(changed, MASK, prompt_index=PROMPTS)
    assert torch.equal(actual[PROMPTS == 5], expected[PROMPTS == 5])
    assert not torch.equal(actual[PROMPTS == -1], expected[PROMPTS == -1])


@pytest.mark.parametrize("estimate", GROUPED)
def test_a_prompt_with_one_response_is_refused(estimate: Grouped) -> None:
    rewards, mask = one_token([1.0, 2.0, 3.0, 4.0, 5.0])
    match = r"one row each for the prompts \[9, 2\]; a baseline of other responses needs at least 2 of each prompt"
    with pytest.raises(ValueError, match=match):
        estimate(rewards, mask, prompt_index=torch.tensor([0, 9, 0, 2, 0]))


@pytest.mark.parametrize("estimate", GROUPED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_advantages_have_the_type_of_the_rewards(estimate: Grouped, dtype: torch.dtype) -> None:
    rewards, mask = one_token([1.0, 2.0], dtype)
    assert estimate(rewards, mask, prompt_index=torch.tensor([0, 0])).dtype == dtype


# --- REINFORCE++ ---


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (1.0, [[4.0, 3.0, 4.0], [3.0, 1.0, 0.0]]),
        (0.5, [[1.5, 1.0, 4.0], [2.5, 1.0, 0.0]]),  # -1 + 4 / 2 = 1, 1 + 1 / 2; 2 + 1 / 2
        (0.0, [[1.0, -1.0, 4.0], [2.0, 1.0, 0.0]]),
    ],
)
def test_reinforce_plus_plus_golden(gamma: float, expected: list[list[float]]) -> None:
    rewards = torch.tensor([[1.0, -1.0, 4.0], [2.0, 1.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert estimate_reinforce_plus_plus(rewards, mask, gamma=gamma).tolist() == expected


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.3, 0.0])
def test_reinforce_plus_plus_equals_a_double_sum(gamma: float) -> None:
    rewards = random_rewards()
    advantages = estimate_reinforce_plus_plus(rewards, MASK, gamma=gamma)
    for row, length in enumerate(LENGTHS):
        values = rewards[row].tolist()
        expected = [sum(gamma ** (s - t) * values[s] for s in range(t, length)) for t in range(length)]
        assert advantages[row].tolist() == pytest.approx(expected + [0.0] * (7 - length), abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_reinforce_plus_plus_is_gae_with_lambda_one_and_a_critic_that_says_nothing(gamma: float) -> None:
    rewards, mask = random_rewards(2), MASK.clone()
    mask[3, 2:5] = False
    expected, _ = estimate_gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, gae_lambda=1.0)
    actual = estimate_reinforce_plus_plus(rewards, mask, gamma=gamma)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)


def test_reinforce_plus_plus_steps_over_tokens_that_are_not_the_policys_own() -> None:
    rewards = torch.tensor([[1.0, NAN, NAN, 2.0, 4.0, NAN]])
    mask = torch.tensor([[True, False, False, True, True, False]])
    advantages = estimate_reinforce_plus_plus(rewards, mask, gamma=0.5)
    assert advantages.tolist() == [[3.0, 0.0, 0.0, 4.0, 4.0, 0.0]]  # 1 + (2 + 4/2) / 2: one step, not three


@pytest.mark.parametrize("garbage", [NAN, math.inf, 1e30])
def test_padding_never_enters_reinforce_plus_plus(garbage: float) -> None:
    rewards, order = random_rewards(), torch.tensor([4, 0, 5, 2, 1, 3])
    expected = estimate_reinforce_plus_plus(rewards, MASK, gamma=0.9)
    padded = rewards.masked_fill(~MASK, garbage)
    assert torch.equal(estimate_reinforce_plus_plus(padded, MASK, gamma=0.9), expected)
    assert torch.equal(estimate_reinforce_plus_plus(padded[order], MASK[order], gamma=0.9), expected[order])


def test_reinforce_plus_plus_leaves_its_arguments_alone_and_whitens_nothing() -> None:
    rewards = random_rewards()
    before = rewards.clone()
    advantages = estimate_reinforce_plus_plus(rewards, MASK, gamma=1.0)
    assert torch.equal(rewards, before)
    assert abs(advantages[MASK].mean().item()) > 0.05
    whitened = masked_whiten(advantages, MASK)
    assert whitened[MASK].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert not torch.allclose(whitened, advantages)
