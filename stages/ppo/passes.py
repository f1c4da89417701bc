"""Forward passes of policy and critic over microbatches of episodes.

The first optimizer step of an update changes nothing before its own forward, so that forward gives the old
log-probabilities and values, too: their graph is kept until the losses are known, and the detached values are the old
ones. The ratio of that step is then exactly 1. Episodes of later minibatches pass without gradients before any update.

Shape legend: N = episodes of a microbatch, T = response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from data.collators import PromptResponseBatch, collate_episodes
from data.microbatches import microbatches_by_length
from stages.models.shared_base import SharedBase
from stages.ppo.config import PPOConfig
from stages.rollouts.contract import Rollout


@dataclass(frozen=True)
class PPOModels:
    """The roles on one base.

    Attributes:
        shared_base: Holds the adapters `policy`, `reference`, `critic` (where there is one) and `reward`.
        value_head: The critic's head; None where the advantages need no critic.
        pad_token_id: Fills shorter rows; it never counts.
    """

    shared_base: SharedBase
    value_head: nn.Module | None
    pad_token_id: int

    def collate(self, rollouts: Sequence[Rollout]) -> PromptResponseBatch:
        """A microbatch on the model's device, as wide as its own longest prompt and response."""
        return self.collate_ids([(rollout.prompt_ids, rollout.response_ids) for rollout in rollouts])

    def collate_ids(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> PromptResponseBatch:
        """The same for prompts and responses as ids."""
        batch = collate_episodes([prompt for prompt, _ in rows], [response for _, response in rows], self.pad_token_id)
        return batch.to(self.shared_base.device)


@dataclass(frozen=True)
class Microbatch:
    """Episodes that pass through the models together.

    Attributes:
        rows: Their numbers in the batch.
        batch: Their tokens.
        logprobs: Of the policy, with a graph that waits for the loss; None where there was no such pass.
        entropy: Of the policy, in nats; likewise. With a graph only where the loss has an entropy bonus.
        values: Of the critic; likewise, and None without one.
    """

    rows: Int64[Tensor, " N"]
    batch: PromptResponseBatch
    logprobs: Float[Tensor, "N T"] | None = None
    entropy: Float[Tensor, "N T"] | None = None
    values: Float[Tensor, "N T"] | None = None


def cut_into_microbatches(
    rollouts: Sequence[Rollout], rows: Sequence[int], models: PPOModels, config: PPOConfig
) -> list[Microbatch]:
    """Cut some of the episodes into microbatches of similar length.

    Args:
        rollouts: All episodes.
        rows: Numbers of those to pass.
        models: Say how to pad.
        config: Says how large a microbatch may be.
    """
    lengths = [len(rollouts[row].prompt_ids) + len(rollouts[row].response_ids) for row in rows]
    cut = microbatches_by_length(lengths, max_rows=config.microbatch_size, max_tokens=config.microbatch_tokens)
    return [
        Microbatch(torch.tensor([rows[n] for n in numbers]), models.collate([rollouts[rows[n]] for n in numbers]))
        for numbers in cut
    ]


def pass_policy(
    batch: PromptResponseBatch, models: PPOModels, config: PPOConfig, *, with_entropy: bool
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"] | None]:
    """Log-probabilities of the active role, and their entropy where it is asked for or part of the loss."""
    temperature, has_bonus = config.rollout.temperature, config.entropy_coef > 0
    if with_entropy or has_bonus:
        return models.shared_base.response_logprobs(batch, temperature=temperature, entropy_gradient=has_bonus)
    return models.shared_base.training_logprobs(batch, temperature=temperature), None


def pass_critic(batch: PromptResponseBatch, models: PPOModels) -> Float[Tensor, "N T"]:
    """Values of the states before each response token, by the critic's role."""
    assert models.value_head is not None
    values: Tensor = models.value_head(models.shared_base.response_hidden_states(batch))
    return values


def pass_with_graph(microbatch: Microbatch, models: PPOModels, config: PPOConfig) -> Microbatch:
    """The microbatch with the policy's and the critic's pass, whose graphs wait for the losses."""
    base, values = models.shared_base, None
    with torch.enable_grad():
        with base.role("policy"):
            logprobs, entropy = pass_policy(microbatch.batch, models, config, with_entropy=True)
        if models.value_head is not None:
            with base.role("critic"):
                values = pass_critic(microbatch.batch, models)
    return Microbatch(microbatch.rows, microbatch.batch, logprobs, entropy, values)
