"""Padding: masks from lengths, side by side, whatever the pad token is."""

from collections.abc import Sequence

import pytest
import torch

from data.collators import collate_episodes, left_pad, right_pad

PROMPTS: list[Sequence[int]] = [(5, 6, 7), [8], (5, 9)]
RESPONSES: list[Sequence[int]] = [(1,), [2, 3, 4, 2], ()]


def test_left_and_right_padding() -> None:
    ids, mask = left_pad(PROMPTS, 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 5, 9]]
    assert mask.tolist() == [[True, True, True], [False, False, True], [False, True, True]]
    ids, mask = right_pad(PROMPTS, 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0], [5, 9, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool


def test_episodes_side_by_side() -> None:
    batch = collate_episodes(PROMPTS, RESPONSES, 0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 1, 0, 0, 0], [0, 0, 8, 2, 3, 4, 2], [0, 5, 9, 0, 0, 0, 0]]
    assert batch.prompt_width == 3
    assert collate_episodes([[1, 2, 3]], [[4]], 0).prompt_width == 3
    assert batch.response_ids.tolist() == [[1, 0, 0, 0], [2, 3, 4, 2], [0, 0, 0, 0]]
    assert batch.response_mask.sum(dim=1).tolist() == [1, 4, 0]
    assert batch.attention_mask.sum(dim=1).tolist() == [4, 5, 2]
    assert batch.attention_mask[:, 3:].equal(batch.response_mask)


def test_checklist_01_a_real_token_that_equals_the_pad_counts() -> None:
    with_pad_inside = collate_episodes([[7, 7], [7]], [[7], [7, 7]], pad_token_id=7)
    elsewhere = collate_episodes([[7, 7], [7]], [[7], [7, 7]], pad_token_id=0)
    assert with_pad_inside.attention_mask.equal(elsewhere.attention_mask)
    assert with_pad_inside.response_mask.equal(elsewhere.response_mask)
    assert with_pad_inside.attention_mask.sum().item() == 6
    assert right_pad([[7, 7], [7]], 7)[1].tolist() == [[True, True], [True, False]]
    assert left_pad([[7, 7], [7]], 7)[1].tolist() == [[True, True], [False, True]]


def test_real_tokens_depend_neither_on_the_other_rows_nor_on_their_order() -> None:
    batch = collate_episodes(PROMPTS, RESPONSES, 0)
    for row in range(3):
        alone = collate_episodes([PROMPTS[row]], [RESPONSES[row]], 0)
        assert batch.input_ids[row][batch.attention_mask[row]].tolist() == alone.input_ids[0].tolist()
        assert batch.response_ids[row][batch.response_mask[row]].tolist() == list(RESPONSES[row])
    order = [2, 0, 1]
    permuted = collate_episodes([PROMPTS[i] for i in order], [RESPONSES[i] for i in order], 0)
    assert permuted.input_ids.equal(batch.input_ids[order])
    assert permuted.attention_mask.equal(batch.attention_mask[order])


def test_batches_without_response_tokens_have_width_zero() -> None:
    batch = collate_episodes([[1], [2, 3]], [[], []], 0)
    assert batch.response_ids.shape == batch.response_mask.shape == (2, 0)
    assert batch.input_ids.shape == (2, 2)
    assert batch.input_ids.dtype == batch.response_ids.dtype == torch.int64
    assert left_pad([[], []], 0)[0].dtype == torch.int64


def test_moving_keeps_everything() -> None:
    batch = collate_episodes(PROMPTS, RESPONSES, 0)
    same = batch.to(torch.device("cpu"))
    moved = batch.to(torch.device("meta"))  # a device that every machine has
    for before, after, elsewhere in zip(batch[:4], same[:4], moved[:4], strict=True):
        assert torch.equal(before, after)
        assert elsewhere.device.type == "meta"
    assert moved.prompt_width == 3


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows to pad"):
        left_pad([], 0)
    with pytest.raises(ValueError, match="no rows to pad"):
        collate_episodes([], [], 0)
    with pytest.raises(ValueError, match="2 prompts but 1 responses"):
        collate_episodes([[1], [2]], [[1]], 0)
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        collate_episodes([[1], []], [[1], [2]], 0)
