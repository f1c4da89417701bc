"""A reward model loaded apart, with a base and a tokenizer of its own: the `TextScoreModel` of `rewards.contract`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.chat import retokenize_episode
from data.errors import ModelError
from data.schema import Prompt
from stages.models.scalar_head import ScoreHead
from stages.models.score_model import SharedBaseScoreModel
from stages.models.shared_base import SharedBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SeparateScoreModel:
    """Scores text: prompt and response are tokenised as they were to train this reward model."""

    def __init__(
        self,
        base: SharedBase,
        head: ScoreHead,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        role: str,
        batch_size: int,
    ) -> None:
        """Keep the parts.

        Args:
            base: The reward model's own base, with its adapter.
            head: Score head with its normalisation.
            tokenizer: The reward model's own, with a pad token.
            role: Name of the adapter.
            batch_size: Rows in one forward pass.
        """
        self._base = base
        self._tokenizer = tokenizer
        self._by_ids = SharedBaseScoreModel(
            base, head, role=role, pad_token_id=int(tokenizer.pad_token_id), batch_size=batch_size
        )

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the base knows; None where it does not say."""
        return self._base.max_positions

    def score_texts(self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """Normalised score of each prompt with its response.

        Raises:
            ModelError: An episode is longer than the base knows positions for.
        """
        encoded = [
            retokenize_episode(self._tokenizer, prompt, response, finished=ended)
            for prompt, response, ended in zip(prompts, responses, finished, strict=True)
        ]
        return self.score([prompt for prompt, _ in encoded], [response for _, response in encoded])

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Normalised score of each prompt with its response, in ids of the reward model's own tokenizer.

        Raises:
            ModelError: An episode is longer than the base knows positions for.
        """
        longest = max(
            (len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)), default=0
        )
        positions = self.max_positions
        if positions is not None and longest > positions:
            raise ModelError(
                f"reward_model.model: an episode has {longest} tokens in the reward model's tokenizer, but its base "
                f"knows {positions} positions. Prompt and response have to fit. Lower `max_prompt_tokens` or "
                "`max_new_tokens` of the stage, or train the reward model on a base with more positions."
            )
        return self._by_ids.score(prompts, responses)
