"""What one step of PPO knows about its episodes before the update.

Everything here is computed without gradients, by the trainer's own weights: the engine's log-probabilities
are kept beside, never used in their place. With several ranks each passes its own episodes through the models, and
all know all of them afterwards: so advantages and their statistics are those of the whole batch on every rank.

Shape legend: B = episodes, T = response tokens of the longest one (right-padded).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data.collators import PromptResponseBatch, collate_episodes
from stages.models.shared_base import SharedBase
from stages.ranks import Ranks
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
class Experience:
    """Log-probabilities and values of the episodes, before the update. On the CPU; 0 on padding.

    Attributes:
        rollouts: The episodes.
        response_mask: True on response tokens, EOS included.
        rollout_logprobs: By the engine that sampled.
        old_logprobs: By the trainer's policy.
        ref_logprobs: By the reference.
        entropy: Of the policy's distribution at each token, in nats.
        values: V(s_t), before token t, in score units; None without a critic.
    """

    rollouts: Sequence[Rollout]
    response_mask: Bool[Tensor, "B T"]
    rollout_logprobs: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"] | None

    def is_finite(self) -> bool:
        """Whether every number is one."""
        tensors = (self.rollout_logprobs, self.old_logprobs, self.ref_logprobs, self.entropy, self.values)
        return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)


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
        rollouts: Episodes of this step and rank.
        models: The roles.
        temperature: The one that the responses were sampled at; divides the logits of policy and reference.
        microbatch_size: Episodes in one forward pass.

    Returns:
        The experience, in the order of `rollouts`.
    """
    width = max(len(rollout.response_ids) for rollout in rollouts)
    old, ref, values, entropy, engine = (torch.zeros(len(rollouts), width) for _ in range(5))
    mask = torch.zeros(len(rollouts), width, dtype=torch.bool)
    base, head = models.shared_base, models.value_head
    for rows in microbatches_by_length(rollouts, microbatch_size):
        batch = models.collate([rollouts[row] for row in rows])
        with base.role("policy"):
            logprobs, entropies = base.response_logprobs(batch, temperature=temperature)
        with base.role("reference"):
            ref_logprobs, _ = base.response_logprobs(batch, temperature=temperature)
        found = [(mask, batch.response_mask), (old, logprobs), (ref, ref_logprobs), (entropy, entropies)]
        if head is not None:
            with base.role("critic"):
                found.append((values, head(base.response_hidden_states(batch)) * batch.response_mask))
        columns = slice(batch.response_mask.shape[1])
        index = torch.tensor(rows)
        for target, source in found:
            target[index, columns] = source.to("cpu", target.dtype)
        for row in rows:
            engine[row, : len(rollouts[row].logprobs)] = torch.tensor(rollouts[row].logprobs)
    return Experience(rollouts, mask, engine, old, ref, entropy, None if head is None else values)


def gather_experience(own: Experience, ranks: Ranks) -> Experience:
    """The experience of all ranks, in their order, on every rank."""
    if ranks.size == 1:
        return own
    episodes = ranks.gather([_episode_to_json(own, row) for row in range(len(own.rollouts))])
    rollouts = [
        Rollout(tuple(e["prompt_ids"]), tuple(e["response_ids"]), tuple(e["logprobs"]), e["finished"]) for e in episodes
    ]
    width = max(len(rollout.response_ids) for rollout in rollouts)

    def padded(name: str) -> Float[Tensor, "B T"]:
        return torch.tensor([e[name] + [0.0] * (width - len(e[name])) for e in episodes])

    return Experience(
        rollouts,
        torch.tensor([[t < len(rollout.response_ids) for t in range(width)] for rollout in rollouts]),
        padded("logprobs"),
        padded("old_logprobs"),
        padded("ref_logprobs"),
        padded("entropy"),
        None if own.values is None else padded("values"),
    )


def _episode_to_json(own: Experience, row: int) -> dict[str, Any]:
    rollout = own.rollouts[row]
    tensors = {"old_logprobs": own.old_logprobs, "ref_logprobs": own.ref_logprobs, "entropy": own.entropy}
    if own.values is not None:
        tensors["values"] = own.values
    return {
        "prompt_ids": rollout.prompt_ids,
        "response_ids": rollout.response_ids,
        "logprobs": rollout.logprobs,
        "finished": rollout.finished,
        **{name: tensor[row, : len(rollout.response_ids)].tolist() for name, tensor in tensors.items()},
    }
