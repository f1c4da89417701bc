"""A reward model as an adapter and a head on the shared base: the `ScoreModel` of `rewards.contract`."""

from collections.abc import Sequence

import torch

from data.collators import collate_episodes
from stages.models.scalar_head import ScoreHead
from stages.models.shared_base import SharedBase


class SharedBaseScoreModel:
    """Scores token sequences with one role of the shared base."""

    def __init__(
        self, shared_base: SharedBase, head: ScoreHead, *, role: str, pad_token_id: int, batch_size: int
    ) -> None:
        """Keep the parts.

        Args:
            shared_base: The model.
            head: Score head with its normalisation.
            role: Adapter of the reward model.
            pad_token_id: Fills shorter rows; it never counts.
            batch_size: Rows in one forward pass.
        """
        self._base = shared_base
        self._head = head.to(shared_base.device)
        self._role = role
        self._pad_token_id = pad_token_id
        self._batch_size = batch_size

    @torch.no_grad()
    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Normalised score of each prompt with its response."""
        scores: list[float] = []
        for start in range(0, len(prompts), self._batch_size):
            rows = slice(start, start + self._batch_size)
            batch = collate_episodes(prompts[rows], responses[rows], self._pad_token_id).to(self._base.device)
            with self._base.role(self._role):
                hidden = self._base.hidden_states(batch.input_ids, batch.attention_mask)
                scores += self._head(hidden, batch.attention_mask).tolist()
        return scores
