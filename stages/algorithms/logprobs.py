"""Log-probabilities of chosen tokens and entropy, whole or in chunks of rows.

A chunk of rows is scored by itself, so that the logits of one chunk are all that ever exists, instead of those of
the whole batch and vocabulary. What a row's score needs for its backward is its gradient with respect to the
row's own hidden state: D numbers, taken in the forward while the chunk's logits are there. The backward only
multiplies: it calls no head and does not care which adapter is active. The head itself gets no gradient, for it
is frozen.

The temperature divides the logits here and nowhere else, so `old_logprobs`, `ref_logprobs` and `logprobs`
cannot differ in it. All arithmetic is in float32 at least: a log-softmax over a large vocabulary in bfloat16
is off by tenths of a nat. This module knows no model: the head comes as a callable.

Shape legend: B = rows of the batch, T = tokens, V = vocabulary, N = rows of hidden states (tokens of the
batch, flat), D = hidden size, K = kinds of scores, k = those with gradients, n = rows of one chunk, *dims = any
leading shape, usually B T.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Score = Callable[[Tensor, Tensor], list[Tensor]]
"""From rows of hidden states [n D] and their tokens [n] to K scores of each row [n]; those without gradients last."""


def gather_logprobs(
    logits: Float[Tensor, "*dims V"], token_ids: Int[Tensor, "*dims"], *, temperature: float
) -> Float[Tensor, "*dims"]:
    """Compute the log-probability of each given token under a softmax at a temperature.

        logprob = log_softmax(logits / temperature)[token]

    The temperature is the one the tokens were sampled at, so that these are log-probabilities of the policy
    that acted (https://arxiv.org/abs/2403.17031).

    Args:
        logits: Scores for the token at the *same* position: shift them by one before, not here.
        token_ids: The tokens, in [0, V).
        temperature: Divides the logits; above 0.

    Returns:
        Log-probabilities in nats, in float32 (float64 for float64 logits).

    Raises:
        ValueError: If the temperature is not above 0.

    Example:
        >>> logits = torch.tensor([[[0.0, 2.0]]])
        >>> gather_logprobs(logits, torch.tensor([[1]]), temperature=2.0)  # log(e / (1 + e))
        tensor([[-0.3133]])
    """
    return _pick(_log_softmax(logits, temperature), token_ids)


def entropy_from_logits(logits: Float[Tensor, "*dims V"], *, temperature: float) -> Float[Tensor, "*dims"]:
    """Compute the entropy of a softmax at a temperature, over the whole vocabulary.

        entropy = -sum_v p_v * log(p_v), with 0 * log(0) = 0

    Exact, not the one-sample estimate `-logprob`. Tokens ruled out by a logit of -inf contribute 0.

    Args:
        logits: Scores for each token of the vocabulary.
        temperature: Divides the logits; above 0.

    Returns:
        Entropy in nats, from 0 to log(V), in float32 (float64 for float64 logits).

    Raises:
        ValueError: If the temperature is not above 0.

    Example:
        >>> entropy_from_logits(torch.zeros(1, 1, 4), temperature=1.0)  # log(4)
        tensor([[1.3863]])
    """
    return _entropy(_log_softmax(logits, temperature))


def chunked_logprobs(
    hidden: Float[Tensor, "N D"],
    token_ids: Int[Tensor, " N"],
    *,
    head: Callable[[Tensor], Tensor],
    temperature: float,
    chunk_size: int,
) -> Float[Tensor, " N"]:
    """Compute log-probabilities from hidden states, and their gradients at once, chunk by chunk.

    Same as `chunked_logprobs_and_entropy` without the entropy, for one product with the head less.

    Args:
        hidden: Last hidden states, after the final norm.
        token_ids: The token that each row predicts.
        head: Maps hidden states [n D] to logits [n V], each row by itself.
        temperature: Divides the logits; above 0.
        chunk_size: Rows per chunk; at least 1.

    Returns:
        Log-probabilities of the tokens, in nats; differentiable once with respect to `hidden`.

    Raises:
        ValueError: If the temperature is not above 0 or the chunk size is below 1.

    Example:
        >>> hidden = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> tokens = torch.tensor([0, 1])
        >>> chunked_logprobs(hidden, tokens, head=lambda rows: rows, temperature=2.0, chunk_size=1)
        tensor([-0.6931, -0.3133])
    """

    def score(rows: Tensor, tokens: Tensor) -> list[Tensor]:
        return [_pick(_log_softmax(head(rows), temperature), tokens)]

    return _score_in_chunks(hidden, token_ids, score, chunk_size).squeeze(0)


def chunked_logprobs_and_entropy(
    hidden: Float[Tensor, "N D"],
    token_ids: Int[Tensor, " N"],
    *,
    head: Callable[[Tensor], Tensor],
    temperature: float,
    chunk_size: int,
    entropy_gradient: bool = True,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute log-probabilities and entropy from hidden states, and their gradients at once, chunk by chunk.

    Values and gradients are those of `gather_logprobs` and `entropy_from_logits` on `head(hidden)`, for any
    chunk size. For the backward, one vector [D] a token and differentiable score is kept.

    Args:
        hidden: Last hidden states, after the final norm.
        token_ids: The token that each row predicts.
        head: Maps hidden states [n D] to logits [n V], each row by itself; includes whatever the model does to
            its logits.
        temperature: Divides the logits; above 0.
        chunk_size: Rows per chunk; at least 1.
        entropy_gradient: False where the entropy is only measured: it spares one product with the head.

    Returns:
        logprobs: Log-probabilities of the tokens, in nats.
        entropy: Entropy of each row's distribution, in nats. Both are differentiable once with respect to
            `hidden`, the entropy only where asked for.

    Raises:
        ValueError: If the temperature is not above 0 or the chunk size is below 1.

    Example:
        >>> hidden = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> tokens = torch.tensor([0, 1])
        >>> chunked_logprobs_and_entropy(hidden, tokens, head=lambda rows: rows, temperature=2.0, chunk_size=1)
        (tensor([-0.6931, -0.3133]), tensor([0.6931, 0.5822]))
    """

    def score(rows: Tensor, tokens: Tensor) -> list[Tensor]:
        log_probabilities = _log_softmax(head(rows), temperature)
        of_entropy = log_probabilities if entropy_gradient else log_probabilities.detach()
        return [_pick(log_probabilities, tokens), _entropy(of_entropy)]

    logprobs, entropy = _score_in_chunks(hidden, token_ids, score, chunk_size)
    return logprobs, entropy if entropy_gradient else entropy.detach()


def _score_in_chunks(
    hidden: Float[Tensor, "N D"], token_ids: Int[Tensor, " N"], score: Score, chunk_size: int
) -> Float[Tensor, "K N"]:
    """Score the rows a chunk at a time, with gradients if any are recorded."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is below 1; it is a number of rows. Use 1024, say.")
    if torch.is_grad_enabled() and hidden.requires_grad:
        scores: Tensor = _RowwiseScores.apply(hidden, token_ids, score, chunk_size)  # type: ignore[no-untyped-call]
        return scores
    found = [torch.stack(score(rows, tokens)) for rows, tokens in _chunks(hidden, token_ids, chunk_size)]
    return torch.cat(found, dim=1)


class _RowwiseScores(torch.autograd.Function):
    """Scores whose gradients are taken in the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, token_ids: Tensor, score: Score, chunk_size: int) -> Tensor:
        """All scores [K N]; keeps the gradient of each with respect to its row."""
        found = [_score_with_gradients(rows, tokens, score) for rows, tokens in _chunks(hidden, token_ids, chunk_size)]
        ctx.save_for_backward(torch.cat([gradients for _, gradients in found], dim=1))
        return torch.cat([scores for scores, _ in found], dim=1)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale each row's gradients; autograd casts their sum to the type of the hidden states."""
        (gradients,) = ctx.saved_tensors
        return (grad_scores[: len(gradients)].unsqueeze(2) * gradients).sum(dim=0), None, None, None


def _score_with_gradients(
    rows: Float[Tensor, "n D"], tokens: Int[Tensor, " n"], score: Score
) -> tuple[Float[Tensor, "K n"], Float[Tensor, "k n D"]]:
    """Score one chunk and take its scores' gradients; its graph, and with it the logits, ends here."""
    gradients: list[Tensor] = []
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        scores = score(leaf, tokens)
        for kind in scores:
            if kind.requires_grad:
                # No score depends on another row, so the gradient of their sum has each row's own.
                gradients += torch.autograd.grad(kind.sum(), leaf, retain_graph=True)
    return torch.stack(scores), torch.stack(gradients)


def _chunks(
    hidden: Float[Tensor, "N D"], token_ids: Int[Tensor, " N"], chunk_size: int
) -> Iterator[tuple[Float[Tensor, "n D"], Int[Tensor, " n"]]]:
    """Cut rows and their tokens into chunks of `chunk_size`; the last may be shorter."""
    return zip(torch.split(hidden, chunk_size), torch.split(token_ids, chunk_size), strict=True)


def _log_softmax(logits: Float[Tensor, "*dims V"], temperature: float) -> Float[Tensor, "*dims V"]:
    """Turn logits into log-probabilities at a temperature, in float32 at least."""
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature} is not above 0; it divides the logits. Greedy decoding has no "
            "log-probabilities to train on: use the temperature that the responses were sampled at."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits / temperature, dim=-1)


def _pick(log_probabilities: Float[Tensor, "*dims V"], token_ids: Int[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Read each row's log-probability of its own token."""
    return log_probabilities.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def _entropy(log_probabilities: Float[Tensor, "*dims V"]) -> Float[Tensor, "*dims"]:
    """Sum -p * log(p); the clamp turns 0 * -inf, which is NaN, into 0."""
    finite = log_probabilities.clamp(min=torch.finfo(log_probabilities.dtype).min)
    return -(log_probabilities.exp() * finite).sum(dim=-1)
