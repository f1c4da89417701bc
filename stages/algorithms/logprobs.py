"""Log-probabilities of chosen tokens and entropy, whole or in chunks of rows.

The temperature divides the logits here and nowhere else, so `old_logprobs`, `ref_logprobs` and `logprobs`
cannot differ in it. All arithmetic is in float32 at least: a log-softmax over a large vocabulary in bfloat16
is off by tenths of a nat. This module knows no model: the head comes as a callable.

Shape legend: B = rows of the batch, T = tokens, V = vocabulary, N = rows of hidden states (tokens of the
batch, flat), D = hidden size, *dims = any leading shape, usually B T.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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

    A row's log-probability depends on no other row, so its gradient with respect to its own hidden state,
    D numbers, is all that the backward will ever need from the head. It is taken in the forward, while the
    chunk's logits are there; the backward multiplies. That is one product with the head less than
    checkpointing (`chunked_logprobs_and_entropy`), and the logits of one chunk are all that ever exists.

    The head itself gets no gradient: it is frozen.

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
    _check_chunk_size(chunk_size)
    if torch.is_grad_enabled() and hidden.requires_grad:
        logprobs: Tensor = _RowwiseLogprobs.apply(hidden, token_ids, head, temperature, chunk_size)  # type: ignore[no-untyped-call]
        return logprobs
    chunks = zip(torch.split(hidden, chunk_size), torch.split(token_ids, chunk_size), strict=True)
    return torch.cat([_pick(_log_softmax(head(rows), temperature), tokens) for rows, tokens in chunks])


class _RowwiseLogprobs(torch.autograd.Function):
    """Log-probabilities whose gradient is taken in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        token_ids: Tensor,
        head: Callable[[Tensor], Tensor],
        temperature: float,
        chunk_size: int,
    ) -> Tensor:
        """Log-probabilities; keeps the gradient of each with respect to its row."""
        logprobs: list[Tensor] = []
        gradients: list[Tensor] = []
        for rows, tokens in zip(torch.split(hidden, chunk_size), torch.split(token_ids, chunk_size), strict=True):
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                picked = _pick(_log_softmax(head(leaf), temperature), tokens)
            gradients += torch.autograd.grad(picked, leaf, torch.ones_like(picked))
            logprobs.append(picked.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Scale each row's gradient; autograd casts it to the type of the hidden states."""
        (gradients,) = ctx.saved_tensors
        return grad_logprobs[:, None] * gradients, None, None, None, None


def chunked_logprobs_and_entropy(
    hidden: Float[Tensor, "N D"],
    token_ids: Int[Tensor, " N"],
    *,
    head: Callable[[Tensor], Tensor],
    temperature: float,
    chunk_size: int,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute log-probabilities and entropy from hidden states without ever holding all logits.

    The head is applied to `chunk_size` rows at a time. Where gradients are recorded, each chunk is
    checkpointed, so its logits are freed after the forward and made again in the backward (Chen et al. 2016,
    section 4, https://arxiv.org/abs/1604.06174): one more head product buys a peak of chunk_size * V logits
    instead of N * V. Values and gradients are those of `gather_logprobs` and `entropy_from_logits` on
    `head(hidden)`.

    The backward calls the head again, so whatever it reads (the active adapter, for one) must still be in
    place then.

    Args:
        hidden: Last hidden states, after the final norm.
        token_ids: The token that each row predicts.
        head: Maps hidden states [n D] to logits [n V]; includes whatever the model does to its logits.
        temperature: Divides the logits; above 0.
        chunk_size: Rows per chunk; at least 1.

    Returns:
        logprobs: Log-probabilities of the tokens, in nats.
        entropy: Entropy of each row's distribution, in nats.

    Raises:
        ValueError: If the temperature is not above 0 or the chunk size is below 1.

    Example:
        >>> hidden = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> tokens = torch.tensor([0, 1])
        >>> chunked_logprobs_and_entropy(hidden, tokens, head=lambda rows: rows, temperature=2.0, chunk_size=1)
        (tensor([-0.6931, -0.3133]), tensor([0.6931, 0.5822]))
    """
    _check_chunk_size(chunk_size)

    def score(rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        log_probabilities = _log_softmax(head(rows), temperature)
        return _pick(log_probabilities, tokens), _entropy(log_probabilities)

    logprobs, entropies = [], []
    for rows, tokens in zip(torch.split(hidden, chunk_size), torch.split(token_ids, chunk_size), strict=True):
        if torch.is_grad_enabled():
            chunk = checkpoint(score, rows, tokens, use_reentrant=False)
        else:
            chunk = score(rows, tokens)
        logprobs.append(chunk[0])
        entropies.append(chunk[1])
    return torch.cat(logprobs), torch.cat(entropies)


def _check_chunk_size(chunk_size: int) -> None:
    """Refuse a chunk without rows."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is below 1; it is a number of rows. Use 1024, say.")


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
