"""From a rollout to an episode: the texts that reward functions read beside the token ids."""

from typing import TYPE_CHECKING

from data.chat import decode_response, render_prompt_text
from data.schema import Prompt
from rewards.contract import Episode
from stages.rollouts.contract import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_episode(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, rollout: Rollout, *, reference: str | None = None
) -> Episode:
    """Give a rollout its texts.

    Args:
        tokenizer: Of the policy.
        prompt: The prompt as the data has it, which `rollout.prompt_ids` encode.
        rollout: One response to it.
        reference: The right answer, where the data has one.
    """
    return Episode(
        prompt_text=render_prompt_text(tokenizer, prompt),
        response_text=decode_response(tokenizer, rollout.response_ids),
        prompt_ids=rollout.prompt_ids,
        response_ids=rollout.response_ids,
        prompt=prompt,
        finished=rollout.finished,
        reference=reference,
    )
