"""Rows of token ids to padded tensors.

Masks come from lengths, never from `ids != pad`: a real token may equal the pad token, and it counts.

Shape legend: B = rows, N = tokens of a row, P = prompt tokens (left-padded), T = response tokens
(right-padded), S = P + T.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class PromptResponseBatch(NamedTuple):
    """Episodes side by side: every response starts at the same column.

    Attributes:
        input_ids: Prompt, left-padded, then response, right-padded.
        attention_mask: True on real tokens.
        response_mask: True on real tokens of the response.
        response_ids: `input_ids` from the response on.
        prompt_width: P, the column where responses start.
    """

    input_ids: Int64[Tensor, "B S"]
    attention_mask: Bool[Tensor, "B S"]
    response_mask: Bool[Tensor, "B T"]
    response_ids: Int64[Tensor, "B T"]
    prompt_width: int

    def to(self, device: torch.device) -> "PromptResponseBatch":
        """The same batch on another device."""
        return PromptResponseBatch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            response_mask=self.response_mask.to(device),
            response_ids=self.response_ids.to(device),
            prompt_width=self.prompt_width,
        )


def left_pad(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Int64[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Pad in front, so that all rows end at the same column, as generation needs.

    Args:
        sequences: Token ids, a row each; lengths may differ and be 0.
        pad_token_id: What stands on padding.

    Returns:
        Ids, and a mask that is True on real tokens.

    Raises:
        ValueError: There are no rows.
    """
    width = _width(sequences)
    rows = [[pad_token_id] * (width - len(ids)) + list(ids) for ids in sequences]
    columns, lengths = _columns_and_lengths(sequences, width)
    return torch.tensor(rows, dtype=torch.int64), columns >= width - lengths


def right_pad(
    sequences: Sequence[Sequence[int]], pad_token_id: int
) -> tuple[Int64[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Pad behind, so that all rows start at the same column. Arguments and errors as `left_pad`."""
    width = _width(sequences)
    rows = [list(ids) + [pad_token_id] * (width - len(ids)) for ids in sequences]
    columns, lengths = _columns_and_lengths(sequences, width)
    return torch.tensor(rows, dtype=torch.int64), columns < lengths


def collate_episodes(
    prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], pad_token_id: int
) -> PromptResponseBatch:
    """Put prompts and their responses side by side.

    Args:
        prompt_ids: Ids of each prompt; none is empty.
        response_ids: Ids of each response, in the same order.
        pad_token_id: What stands on padding.

    Raises:
        ValueError: There are no rows, a prompt is empty, or the numbers of prompts and responses differ.
    """
    if len(prompt_ids) != len(response_ids):
        raise ValueError(f"{len(prompt_ids)} prompts but {len(response_ids)} responses; one for each is needed")
    if any(len(ids) == 0 for ids in prompt_ids):
        raise ValueError("a prompt has no tokens; the first response token needs one to be predicted from")
    prompts, prompt_mask = left_pad(prompt_ids, pad_token_id)
    responses, response_mask = right_pad(response_ids, pad_token_id)
    return PromptResponseBatch(
        input_ids=torch.cat([prompts, responses], dim=1),
        attention_mask=torch.cat([prompt_mask, response_mask], dim=1),
        response_mask=response_mask,
        response_ids=responses,
        prompt_width=prompts.shape[1],
    )


def _width(sequences: Sequence[Sequence[int]]) -> int:
    if not sequences:
        raise ValueError("no rows to pad; at least one is needed")
    return max(len(ids) for ids in sequences)


def _columns_and_lengths(
    sequences: Sequence[Sequence[int]], width: int
) -> tuple[Int64[Tensor, " N"], Int64[Tensor, "B 1"]]:
    lengths = torch.tensor([[len(ids)] for ids in sequences])
    return torch.arange(width), lengths
