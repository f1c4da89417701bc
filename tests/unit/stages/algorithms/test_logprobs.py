"""Log-probabilities and entropy against a float64 loop over `math.exp`, and chunked against that loop too."""

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from stages.algorithms.logprobs import (
    chunked_logprobs,
    chunked_logprobs_and_entropy,
    entropy_from_logits,
    gather_logprobs,
)


def reference_softmax(logits: list[float], temperature: float) -> list[float]:
    """Probabilities in Python floats, so that no torch function is its own oracle."""
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal logits in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gather_logprobs_golden() -> None:
    # softmax of (0, ln 2, ln 5) is (1, 2, 5) / 8
    logits = torch.tensor([[[0.0, math.log(2), math.log(5)], [0.0, math.log(2), math.log(5)]]])
    expected = torch.tensor([[math.log(5 / 8), math.log(1 / 8)]])
    torch.testing.assert_close(gather_logprobs(logits, torch.tensor([[2, 0]]), temperature=1.0), expected)


def test_entropy_golden() -> None:
    # uniform over four: ln 4; probabilities 1/4 and 3/4: ln 4 - 3/4 ln 3
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3), -math.inf, -math.inf]])
    expected = torch.tensor([math.log(4), math.log(4) - 0.75 * math.log(3)])
    torch.testing.assert_close(entropy_from_logits(logits, temperature=1.0), expected)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_checklist_17_temperature_divides_the_logits(temperature: float) -> None:
    logits = random_logits(2, 3, 6)
    token_ids = torch.tensor([[0, 5, 2], [1, 1, 4]])
    logprobs = gather_logprobs(logits, token_ids, temperature=temperature)
    entropy = entropy_from_logits(logits, temperature=temperature)
    chunked, chunked_entropy = chunked_logprobs_and_entropy(
        logits.reshape(6, 6),
        token_ids.flatten(),
        head=lambda rows: rows,
        temperature=temperature,
        chunk_size=4,
    )
    for b in range(2):
        for t in range(3):
            probabilities = reference_softmax(logits[b, t].tolist(), temperature)
            expected = math.log(probabilities[int(token_ids[b, t])])
            expected_entropy = -sum(p * math.log(p) for p in probabilities)
            assert logprobs[b, t].item() == pytest.approx(expected, abs=1e-12)
            assert chunked[3 * b + t].item() == pytest.approx(expected, abs=1e-12)
            assert entropy[b, t].item() == pytest.approx(expected_entropy, abs=1e-12)
            assert chunked_entropy[3 * b + t].item() == pytest.approx(expected_entropy, abs=1e-12)


def test_probabilities_of_all_tokens_sum_to_one_and_average_to_the_entropy() -> None:
    logits = random_logits(1, 1, 5, seed=3).expand(1, 5, 5)
    logprobs = gather_logprobs(logits, torch.arange(5).unsqueeze(0), temperature=0.7)
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    entropy = entropy_from_logits(logits, temperature=0.7)
    assert -(logprobs.exp() * logprobs).sum().item() == pytest.approx(entropy[0, 0].item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_logits_are_scored_in_float32(dtype: torch.dtype) -> None:
    logits = (10 * random_logits(1, 2, 50)).to(dtype)
    token_ids = torch.tensor([[3, 40]])
    logprobs = gather_logprobs(logits, token_ids, temperature=0.7)
    entropy = entropy_from_logits(logits, temperature=0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    for t in range(2):
        probabilities = reference_softmax(logits[0, t].double().tolist(), 0.7)
        assert logprobs[0, t].item() == pytest.approx(math.log(probabilities[int(token_ids[0, t])]), abs=1e-4)


def test_tokens_ruled_out_leave_entropy_and_its_gradient_finite() -> None:
    logits = torch.tensor([[0.5, -math.inf, 0.0]], requires_grad=True)
    entropy = entropy_from_logits(logits, temperature=1.0)
    entropy.sum().backward()
    pair = torch.tensor([[0.5, 0.0]], requires_grad=True)
    pair_entropy = entropy_from_logits(pair, temperature=1.0)
    pair_entropy.sum().backward()
    assert logits.grad is not None and pair.grad is not None
    torch.testing.assert_close(entropy, pair_entropy)
    torch.testing.assert_close(logits.grad[:, [0, 2]], pair.grad)
    assert logits.grad[0, 1] == 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_not_above_zero_is_refused(temperature: float) -> None:
    match = rf"temperature={temperature} is not above 0; it divides the logits"
    logits, token_ids = torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=match):
        gather_logprobs(logits, token_ids, temperature=temperature)
    with pytest.raises(ValueError, match=match):
        entropy_from_logits(logits, temperature=temperature)
    with pytest.raises(ValueError, match=match):
        chunked_logprobs_and_entropy(logits[0], token_ids[0], head=lambda x: x, temperature=temperature, chunk_size=2)


@pytest.mark.parametrize("temperature", [0.5, 1e-3])
def test_any_temperature_above_zero_is_taken(temperature: float) -> None:
    assert gather_logprobs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=temperature) < 0


def test_gradients_of_logprobs_and_entropy() -> None:
    logits = random_logits(2, 2, 4, seed=1).requires_grad_()
    token_ids = torch.tensor([[0, 3], [2, 2]])
    assert torch.autograd.gradcheck(lambda x: gather_logprobs(x, token_ids, temperature=0.7), (logits,))
    assert torch.autograd.gradcheck(lambda x: entropy_from_logits(x, temperature=0.7), (logits,))


# --- chunks ---

TOKENS = torch.tensor([0, 3, 2, 6, 1, 4, 5])


def make_head(seed: int = 2) -> tuple[torch.nn.Linear, Callable[[Tensor], Tensor]]:
    """A soft-capped, biased head from 4 to 7, and its weights."""
    torch.manual_seed(seed)
    linear = torch.nn.Linear(4, 7, dtype=torch.float64)
    return linear, lambda rows: 3 * torch.tanh(linear(rows) / 3)


def chunked_scores(hidden: Tensor, head: Callable[[Tensor], Tensor], chunk_size: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of TOKENS and entropy at temperature 0.7."""
    return chunked_logprobs_and_entropy(hidden, TOKENS, head=head, temperature=0.7, chunk_size=chunk_size)


def plain_scores(hidden: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The same from all rows at once, by autograd through other functions than those under test."""
    probabilities = (head(hidden) / 0.7).softmax(-1)
    return probabilities[torch.arange(7), TOKENS].log(), torch.special.entr(probabilities).sum(-1)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
def test_chunked_values_and_gradients_equal_the_unchunked(chunk_size: int) -> None:
    _, head = make_head()
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    results = []
    for chunked in (False, True):
        hidden = random_logits(7, 4, seed=5).requires_grad_()
        logprobs, entropy = chunked_scores(hidden, head, chunk_size) if chunked else plain_scores(hidden, head)
        (logprobs * weights + entropy * weights.flip(0).square()).sum().backward()
        assert hidden.grad is not None
        results.append((logprobs.detach(), entropy.detach(), hidden.grad))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_the_two_may_be_used_alone(which: int) -> None:
    _, head = make_head()
    gradients = []
    for score in (lambda hidden: chunked_scores(hidden, head, 3), lambda hidden: plain_scores(hidden, head)):
        hidden = random_logits(7, 4, seed=6).requires_grad_()
        gradients += torch.autograd.grad(score(hidden)[which].sum(), hidden)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 3, 7])
def test_gradients_of_chunked_logprobs_and_entropy(chunk_size: int) -> None:
    _, head = make_head()
    hidden = random_logits(7, 4, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: chunked_scores(x, head, chunk_size), (hidden,))


def test_the_two_chunked_functions_give_the_same_logprobs() -> None:
    _, head = make_head()
    for needs_gradient in (False, True):
        hidden = random_logits(7, 4).requires_grad_(needs_gradient)
        alone = chunked_logprobs(hidden, TOKENS, head=head, temperature=0.7, chunk_size=2)
        assert torch.equal(alone, chunked_scores(hidden, head, 2)[0])


def test_tokens_ruled_out_by_the_head_leave_chunked_gradients_finite() -> None:
    linear, _ = make_head()
    kept = torch.tensor([True, True, True, True, True, False, False])
    token_ids = torch.tensor([0, 3, 2, 4, 1, 4, 0])

    def head(rows: Tensor) -> Tensor:
        logits: Tensor = linear(rows)
        return logits.masked_fill(~kept, -math.inf)

    gradients = []
    for chosen in (head, lambda rows: linear(rows)[:, kept]):
        hidden = random_logits(7, 4, seed=5).requires_grad_()
        logprobs, entropy = chunked_logprobs_and_entropy(hidden, token_ids, head=chosen, temperature=1.0, chunk_size=3)
        assert bool(logprobs.isfinite().all()) and bool(entropy.isfinite().all())
        gradients += torch.autograd.grad((logprobs + 2 * entropy).sum(), hidden)
    assert bool(gradients[0].isfinite().all())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_the_head_sees_each_chunk_once_and_gets_no_gradient() -> None:
    linear, head = make_head()
    rows_seen: list[int] = []

    def counting_head(rows: Tensor) -> Tensor:
        rows_seen.append(rows.shape[0])
        return head(rows)

    hidden = random_logits(7, 4).requires_grad_()
    logprobs, entropy = chunked_scores(hidden, counting_head, 3)
    (logprobs.sum() + entropy.sum()).backward()
    assert rows_seen == [3, 3, 1]  # the backward does not call the head again
    assert hidden.grad is not None
    assert linear.weight.grad is None and linear.bias.grad is None


class Kept:
    """A tensor that autograd saved; its life is that of the graph, to which it must not refer itself."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def test_logits_live_for_one_chunk_and_two_vectors_a_token_are_kept() -> None:
    _, head = make_head()
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()
    alive_at_each_chunk: list[int] = []

    def keep(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    def watching_head(rows: Tensor) -> Tensor:
        alive_at_each_chunk.append(len(alive))
        return head(rows)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        logprobs, entropy = chunked_scores(random_logits(7, 4).requires_grad_(), watching_head, 3)
    assert alive_at_each_chunk == [0, 0, 0]
    assert sum(kept.tensor.numel() for kept in alive) == 2 * 7 * 4
    assert logprobs.requires_grad and entropy.requires_grad


def test_entropy_without_gradients_records_none() -> None:
    flags: list[bool] = []

    def head(rows: Tensor) -> Tensor:
        flags.append((2 * rows).requires_grad)
        return rows

    hidden, token_ids = torch.randn(2, 4), torch.tensor([0, 1])
    chunked_logprobs_and_entropy(hidden, token_ids, head=head, temperature=1.0, chunk_size=2)
    with torch.no_grad():
        found = chunked_logprobs_and_entropy(
            hidden.requires_grad_(), token_ids, head=head, temperature=1.0, chunk_size=2
        )
    assert flags == [False, False]
    assert not found[0].requires_grad and not found[1].requires_grad


def test_measured_entropy_keeps_one_vector_a_token_and_leaves_the_gradient_to_the_logprobs() -> None:
    torch.manual_seed(3)
    weight = torch.randn(6, 4, dtype=torch.float64)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    token_ids = torch.tensor([0, 5, 2, 2, 1])
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    def scores(entropy_gradient: bool) -> tuple[Tensor, Tensor]:
        return chunked_logprobs_and_entropy(
            hidden,
            token_ids,
            head=lambda rows: rows @ weight.T,
            temperature=0.7,
            chunk_size=2,
            entropy_gradient=entropy_gradient,
        )

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        logprobs, entropy = scores(False)
    assert logprobs.requires_grad and not entropy.requires_grad
    assert sum(kept.tensor.numel() for kept in alive) == 5 * 4
    both = scores(True)
    torch.testing.assert_close((logprobs, entropy), both, rtol=0, atol=0)
    incoming = torch.arange(5, dtype=torch.float64) - 1.5
    (found,) = torch.autograd.grad((logprobs * incoming).sum(), hidden)
    (expected,) = torch.autograd.grad((both[0] * incoming).sum(), hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_low_precision_hidden_states_are_scored_in_float32_and_get_gradients_of_their_own_type() -> None:
    hidden = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    logprobs, entropy = chunked_logprobs_and_entropy(
        hidden, torch.tensor([0, 1, 2]), head=lambda rows: rows, temperature=1.0, chunk_size=2
    )
    assert logprobs.dtype == entropy.dtype == torch.float32
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_no_rows_give_no_values(needs_gradient: bool) -> None:
    hidden = torch.zeros(0, 3, requires_grad=needs_gradient)
    logprobs, entropy = chunked_logprobs_and_entropy(
        hidden, torch.zeros(0, dtype=torch.long), head=lambda x: x, temperature=1.0, chunk_size=2
    )
    assert logprobs.shape == entropy.shape == (0,)
    assert logprobs.requires_grad == entropy.requires_grad == needs_gradient


def test_rows_and_tokens_must_be_as_many() -> None:
    with pytest.raises((ValueError, TypeCheckError), match="zip|Type-check error"):  # the latter under the hook
        tokens = torch.zeros(7, dtype=torch.long)
        chunked_logprobs_and_entropy(torch.zeros(4, 3), tokens, head=lambda x: x, temperature=1.0, chunk_size=4)


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_a_chunk_size_below_one_is_refused(chunk_size: int) -> None:
    with pytest.raises(ValueError, match=rf"chunk_size={chunk_size} is below 1; it is a number of rows"):
        chunked_logprobs_and_entropy(
            torch.zeros(7, 7), TOKENS, head=lambda x: x, temperature=1.0, chunk_size=chunk_size
        )


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_precomputed_gradients_equal_those_of_autograd(chunk_size: int, temperature: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(11, 5, dtype=torch.float64)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    token_ids = torch.tensor([0, 10, 3, 3, 7, 1, 5])
    incoming = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, -1.0, 0.25], dtype=torch.float64)

    def head(rows: torch.Tensor) -> torch.Tensor:
        return torch.tanh(rows @ weight.T)  # a soft-capped head: its Jacobian differs from row to row

    found = chunked_logprobs(hidden, token_ids, head=head, temperature=temperature, chunk_size=chunk_size)
    (found_gradient,) = torch.autograd.grad((found * incoming).sum(), hidden)

    # independent: log-softmax written out, differentiated by autograd
    logits = torch.tanh(hidden @ weight.T) / temperature
    expected = logits[torch.arange(7), token_ids] - torch.log(torch.exp(logits).sum(dim=1))
    (expected_gradient,) = torch.autograd.grad((expected * incoming).sum(), hidden)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradient, expected_gradient)


def test_precomputed_gradients_hold_one_chunk_of_logits_at_most() -> None:
    rows_seen: list[int] = []

    def head(rows: torch.Tensor) -> torch.Tensor:
        rows_seen.append(rows.shape[0])
        return torch.cat([rows, -rows], dim=1)

    hidden = torch.randn(5, 3, requires_grad=True)
    found = chunked_logprobs(hidden, torch.zeros(5, dtype=torch.long), head=head, temperature=1.0, chunk_size=2)
    found.sum().backward()
    assert rows_seen == [2, 2, 1]  # once each: the backward does not call the head again
    assert hidden.grad is not None


def test_precomputed_gradients_are_not_taken_where_none_is_needed() -> None:
    flags: list[bool] = []

    def head(rows: torch.Tensor) -> torch.Tensor:
        flags.append((2 * rows).requires_grad)
        return rows

    hidden = torch.randn(2, 4)
    chunked_logprobs(hidden, torch.tensor([0, 1]), head=head, temperature=1.0, chunk_size=2)
    with torch.no_grad():
        chunked_logprobs(hidden.requires_grad_(), torch.tensor([0, 1]), head=head, temperature=1.0, chunk_size=2)
    assert flags == [False, False]


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_precomputed_gradients_refuse_a_chunk_without_rows(chunk_size: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_size={chunk_size} is below 1"):
        chunked_logprobs(
            torch.zeros(2, 2), torch.tensor([0, 1]), head=lambda x: x, temperature=1.0, chunk_size=chunk_size
        )


@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_chunked_values_without_gradients_equal_a_log_softmax_written_out(chunk_size: int) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    token_ids = torch.tensor([6, 0, 2, 2, 5])
    found = chunked_logprobs(
        hidden, token_ids, head=lambda rows: rows @ weight.T, temperature=0.5, chunk_size=chunk_size
    )
    expected = []
    for row in range(5):
        logits = [2.0 * float(hidden[row] @ weight[v]) for v in range(7)]
        expected.append(logits[int(token_ids[row])] - math.log(sum(math.exp(value) for value in logits)))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_chunked_values_refuse_more_rows_than_tokens(needs_gradient: bool) -> None:
    # 5 rows and 4 tokens in chunks of 2 are 3 and 2 chunks: none may be dropped without a word
    hidden = torch.zeros(5, 3, requires_grad=needs_gradient)
    with pytest.raises((ValueError, TypeCheckError), match="zip|Type-check error"):  # the latter under the hook
        chunked_logprobs(
            hidden, torch.zeros(4, dtype=torch.long), head=lambda rows: rows, temperature=1.0, chunk_size=2
        )


def test_precomputed_gradients_arrive_in_the_type_of_the_hidden_states() -> None:
    hidden = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    found = chunked_logprobs(hidden, torch.tensor([0, 1, 2]), head=lambda rows: rows, temperature=1.0, chunk_size=2)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
