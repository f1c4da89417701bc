"""What one step of PPO knows about its episodes before the update.

Everything here is computed without gradients, by the trainer's own weights: the engine's log-probabilities
are kept beside, never used in their place.

Shape legend: B = episodes, T = response tokens of the longest one (right-padded).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data.collators import PromptResponseBatch, collate_episodes
from stages.models.shared_base import SharedBase
from stages.rollouts.contract import Rollout


@dataclass(frozen=True)
class PPOModels:
    """The four roles on one base.

    Attributes:
        shared_base: Holds the adapters `policy`, `reference`, `critic` and `reward`.
        value_head: The critic's head.
        pad_token_id: Fills shorter rows; it never counts.
    """

    shared_base: SharedBase
    value_head: nn.Module
    pad_token_id: int

    def collate(self, rollouts: Sequence[Rollout]) -> PromptResponseBatch:
        """A microbatch on the model's device, as wide as its own longest prompt and response."""
        batch = collate_episodes(
            [rollout.prompt_ids for rollout in rollouts],
            [rollout.response_ids for rollout in rollouts],
            self.pad_token_id,
        )
        return batch.to(self.shared_base.device)


@dataclass(frozen=True)
class Experience:
    """Log-probabilities and values of the episodes, before the update. On the CPU; 0 on padding.

    Attributes:
        rollouts: The episodes.
        response_mask: True on response tokens, EOS included.
        rollout_logprobs: By the engine that sampled.
        old_logprobs: By the trainer's policy.
        ref_logprobs: By the reference.
        values: V(s_t), before token t, in score units.
        entropy: Of the policy's distribution at each token, in nats.
    """

    rollouts: Sequence[Rollout]
    response_mask: Bool[Tensor, "B T"]
    rollout_logprobs: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]


def microbatches_by_length(rollouts: Sequence[Rollout], microbatch_size: int) -> Iterator[list[int]]:
    """Row numbers in microbatches of similar length, so that little of a forward pass is padding."""
    order = sorted(
        range(len(rollouts)),
        key=lambda row: (len(rollouts[row].prompt_ids) + len(rollouts[row].response_ids), row),
    )
    for start in range(0, len(order), microbatch_size):
        yield order[start : start + microbatch_size]


@torch.no_grad()
def collect_experience(
    rollouts: Sequence[Rollout], models: PPOModels, *, temperature: float, microbatch_size: int
) -> Experience:
    """Pass the episodes through policy, reference and critic.

    Args:
        rollouts: Episodes of this step.
        models: The roles.
        temperature: The one that the responses were sampled at; divides the logits of policy and reference.
        microbatch_size: Episodes in one forward pass.

    Returns:
        The experience, in the order of `rollouts`.
    """
    width = max(len(rollout.response_ids) for rollout in rollouts)
    old, ref, values, entropy, engine = (torch.zeros(len(rollouts), width) for _ in range(5))
    mask = torch.zeros(len(rollouts), width, dtype=torch.bool)
    base = models.shared_base
    for rows in microbatches_by_length(rollouts, microbatch_size):
        batch = models.collate([rollouts[row] for row in rows])
        with base.role("policy"):
            logprobs, entropies = base.response_logprobs(batch, temperature=temperature)
        with base.role("reference"):
            ref_logprobs, _ = base.response_logprobs(batch, temperature=temperature)
        with base.role("critic"):
            predicted = models.value_head(base.response_hidden_states(batch)) * batch.response_mask
        columns = slice(batch.response_mask.shape[1])
        index = torch.tensor(rows)
        for target, source in (
            (mask, batch.response_mask),
            (old, logprobs),
            (ref, ref_logprobs),
            (values, predicted),
            (entropy, entropies),
        ):
            target[index, columns] = source.to("cpu", target.dtype)
        for row in rows:
            engine[row, : len(rollouts[row].logprobs)] = torch.tensor(rollouts[row].logprobs)
    return Experience(rollouts, mask, engine, old, ref, values, entropy)
