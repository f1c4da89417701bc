"""A reward model as adapters and heads on the shared base: the `ScoreModel` of `rewards.contract`."""

from collections.abc import Mapping, Sequence

import torch

from data.collators import collate_episodes
from rewards.ensemble import mean_of_members
from stages.models.scalar_head import ScoreHead
from stages.models.shared_base import SharedBase


class SharedBaseScoreModel:
    """Scores token sequences with roles of the shared base, each with one head or more: the members."""

    def __init__(
        self, shared_base: SharedBase, heads: Mapping[str, Sequence[ScoreHead]], *, pad_token_id: int, batch_size: int
    ) -> None:
        """Keep the parts.

        Args:
            shared_base: The model.
            heads: Score heads with their normalisation, by the adapter that they belong to. The heads of one adapter
                share its pass.
            pad_token_id: Fills shorter rows; it never counts.
            batch_size: Rows in one forward pass.
        """
        self._base = shared_base
        self._heads = {role: [head.to(shared_base.device) for head in own] for role, own in heads.items()}
        self._pad_token_id = pad_token_id
        self._batch_size = batch_size

    @property
    def num_members(self) -> int:
        """How many scores an episode gets."""
        return sum(len(own) for own in self._heads.values())

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Normalised score of each prompt with its response: the mean of the members."""
        return mean_of_members(self.score_members(prompts, responses))

    @torch.no_grad()
    def score_members(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Normalised scores by member: one list for each, with one score an episode."""
        scores: list[list[float]] = [[] for _ in range(self.num_members)]
        for start in range(0, len(prompts), self._batch_size):
            rows = slice(start, start + self._batch_size)
            batch = collate_episodes(prompts[rows], responses[rows], self._pad_token_id).to(self._base.device)
            found: list[list[float]] = []
            for role, heads in self._heads.items():
                with self._base.role(role):
                    hidden = self._base.hidden_states(batch.input_ids, batch.attention_mask)
                    found += [head(hidden, batch.attention_mask).tolist() for head in heads]
            for member, new in zip(scores, found, strict=True):
                member += new
        return scores
