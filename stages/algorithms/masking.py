"""Statistics over the entries that count, and masks from token ids.

Every mask is boolean and True means "counts". What lies outside a mask is never read: it may be NaN or
infinite, and it gets a gradient of exactly zero. Lengths and positions come from masks alone, never from a
comparison of ids with the pad id, because a pad token may also be a real token.

Shape legend: B = rows of the batch, T = response tokens (right-padded), S = tokens of prompt and response
together, *dims = any shape, shared by the values and their mask.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_mean(values: Float[Tensor, "*dims"], mask: Bool[Tensor, "*dims"]) -> Float[Tensor, ""]:
    """Average the values over the entries where the mask is True.

        mean = sum(values * mask) / sum(mask)

    Each counted entry weighs the same, so in a batch of responses a long response weighs more than a short
    one (a token mean, as in https://arxiv.org/abs/2403.17031), not a mean over rows of row means.

    Args:
        values: What to average, in any unit.
        mask: True on the entries that count.

    Returns:
        The mean, in the units of the values.

    Raises:
        ValueError: If no entry counts.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    return _counted(values, mask).mean()


def masked_var(values: Float[Tensor, "*dims"], mask: Bool[Tensor, "*dims"]) -> Float[Tensor, ""]:
    """Compute the biased variance of the values over the entries where the mask is True.

        var = masked_mean((values - masked_mean(values))^2)

    Biased (divided by n, not n - 1) as in the reference recipe (https://arxiv.org/abs/2403.17031, detail on
    reward whitening), so one counted entry has variance 0 and not NaN.

    Args:
        values: What to measure, in any unit.
        mask: True on the entries that count.

    Returns:
        The variance, in squared units of the values.

    Raises:
        ValueError: If no entry counts.

    Example:
        >>> masked_var(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
        tensor(1.)
    """
    return _counted(values, mask).var(correction=0)


def masked_whiten(
    values: Float[Tensor, "*dims"], mask: Bool[Tensor, "*dims"], *, epsilon: float = 1e-8
) -> Float[Tensor, "*dims"]:
    """Shift and scale the values to mean 0 and variance 1 over the entries where the mask is True.

        whitened = (values - mean) / sqrt(var + epsilon), 0 outside the mask

    This is what PPO does with advantages (https://arxiv.org/abs/2403.17031). Rewards keep their mean: for
    them there is `masked_rescale`, a function of its own instead of a flag.

    Args:
        values: What to whiten, in any unit.
        mask: True on the entries that count.
        epsilon: Added to the variance, in squared units of the values. A single counted entry gives 0, not
            NaN.

    Returns:
        The whitened values, without unit.

    Raises:
        ValueError: If no entry counts.

    Example:
        >>> masked_whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
        tensor([-1.,  1.,  0.])
    """
    centered = (values - masked_mean(values, mask)).masked_fill(~mask, 0.0)
    return centered * torch.rsqrt(masked_var(values, mask) + epsilon)


def masked_rescale(values: Float[Tensor, "*dims"], mask: Bool[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Scale the values to variance 1 around their mean, which they keep, where the mask is True.

        rescaled = mean + (values - mean) / sqrt(var + 1e-8), 0 outside the mask

    This is reward whitening as OpenAI's code and the reference recipe do it (`whiten(rewards,
    shift_mean=False)`, https://arxiv.org/abs/2403.17031). Only the spread is divided by the standard
    deviation: the mean keeps its value, so it is not the same as `values / std`.

    Args:
        values: What to rescale, usually per-token rewards.
        mask: True on the entries that count.

    Returns:
        Values of the same mean as before and of variance 1.

    Raises:
        ValueError: If no entry counts.

    Example:
        >>> masked_rescale(torch.tensor([1.0, 5.0, 99.0]), torch.tensor([True, True, False]))
        tensor([2., 4., 0.])
    """
    return (masked_whiten(values, mask) + masked_mean(values, mask)).masked_fill(~mask, 0.0)


def mask_through_first_eos(token_ids: Int[Tensor, "B T"], *, eos_token_ids: Sequence[int]) -> Bool[Tensor, "B T"]:
    """Mark the tokens of each response up to and including its first end-of-sequence token.

    Responses are sampled to one fixed length and cut afterwards (https://arxiv.org/abs/2403.17031); what
    follows the first EOS is not part of the response. The EOS itself counts: the policy chose it, and the
    score is read there.

    Args:
        token_ids: Sampled response tokens.
        eos_token_ids: Every id that ends a response; chat models often have two.

    Returns:
        True through the first EOS of a row; all True in a row without one (a truncated response).

    Example:
        >>> mask_through_first_eos(torch.tensor([[5, 2, 7, 2], [5, 6, 7, 8]]), eos_token_ids=[2])
        tensor([[ True,  True, False, False],
                [ True,  True,  True,  True]])
    """
    is_eos = torch.isin(token_ids, token_ids.new_tensor(eos_token_ids))
    # The running count includes the token itself, so it equals its flag only while no EOS came before.
    return is_eos.cumsum(dim=1) == is_eos


def last_true_index(mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """Find the last column where the mask is True, for each row.

    Gaps are allowed (left padding, turns that do not count): it is the last True, not the number of them.

    Args:
        mask: True on the tokens that count.

    Returns:
        A column index in [0, T) for each row.

    Raises:
        ValueError: If a row has no True entry; the message names the rows.

    Example:
        >>> last_true_index(torch.tensor([[True, True, False], [False, True, True]]))
        tensor([1, 2])
    """
    empty_rows = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty_rows:
        raise ValueError(
            f"mask has no True entry in rows {empty_rows}; each row needs at least one token that counts. "
            "Drop empty responses first."
        )
    return mask.cumsum(dim=1).argmax(dim=1)


def position_ids_from_mask(attention_mask: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Number the tokens that count 0, 1, 2 ... in each row, so that left padding does not shift positions.

        position = max(cumsum(mask) - 1, 0)

    On counted tokens this is the exclusive cumulative sum of the mask of https://arxiv.org/abs/2403.17031.
    Padding gets the position of the counted token before it (0 at the left), so no position exceeds those of
    the real tokens and a table of learned positions is never overrun.

    Args:
        attention_mask: True on real tokens, False on padding at either side.

    Returns:
        Positions in tokens, from 0.

    Example:
        >>> position_ids_from_mask(torch.tensor([[False, False, True, True, True]]))
        tensor([[0, 0, 0, 1, 2]])
    """
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def _counted(values: Float[Tensor, "*dims"], mask: Bool[Tensor, "*dims"]) -> Float[Tensor, " n"]:
    """Select the entries that count: selecting, not multiplying by 0, keeps NaN in padding out."""
    if not mask.any():
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} has no True entry; a mean needs at least one. Drop empty batches first."
        )
    return values[mask]
