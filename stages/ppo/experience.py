"""What one step of PPO knows about its episodes before the update.

Everything here is computed by the trainer's own weights and holds no graph: the engine's log-probabilities are kept
beside, never used in their place. With several ranks each passes its own episodes through the models, and
all know all of them afterwards: so advantages and their statistics are those of the whole batch on every rank.

Shape legend: B = episodes, T = response tokens of the longest one (right-padded).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.ppo.config import PPOConfig
from stages.ppo.passes import Microbatch, PPOModels, cut_into_microbatches, pass_critic, pass_with_graph
from stages.ranks import Ranks
from stages.rollouts.contract import Rollout


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


def collect_experience(
    rollouts: Sequence[Rollout], models: PPOModels, config: PPOConfig, *, first: Sequence[int] = ()
) -> tuple[Experience, list[Microbatch]]:
    """Pass the episodes through policy, reference and critic.

    Args:
        rollouts: Episodes of this step and rank.
        models: The roles.
        config: Temperature of the samples, and size of a microbatch.
        first: Numbers of the episodes of the first optimizer step, if its forward is to be shared.

    Returns:
        The experience, in the order of `rollouts`, and the microbatches of `first` with their graphs.
    """
    width = max(len(rollout.response_ids) for rollout in rollouts)
    old, ref, values, entropy, engine = (torch.zeros(len(rollouts), width) for _ in range(5))
    mask = torch.zeros(len(rollouts), width, dtype=torch.bool)

    def write(target: Tensor, microbatch: Microbatch, source: Tensor) -> None:
        columns = slice(microbatch.batch.response_mask.shape[1])
        target[microbatch.rows, columns] = source.detach().to("cpu", target.dtype)

    chosen = set(first)
    rest = [row for row in range(len(rollouts)) if row not in chosen]
    kept = [pass_with_graph(one, models, config) for one in cut_into_microbatches(rollouts, first, models, config)]
    for one in kept:
        assert one.logprobs is not None and one.entropy is not None
        write(old, one, one.logprobs)
        write(entropy, one, one.entropy)
        if one.values is not None:
            write(values, one, one.values * one.batch.response_mask)
    base, head = models.shared_base, models.value_head
    with torch.no_grad():
        others = cut_into_microbatches(rollouts, rest, models, config)
        for one in others:
            with base.role("policy"):
                logprobs, entropies = base.response_logprobs(one.batch, temperature=config.rollout.temperature)
            write(old, one, logprobs)
            write(entropy, one, entropies)
            if head is not None:
                with base.role("critic"):
                    write(values, one, pass_critic(one.batch, models) * one.batch.response_mask)
        for one in (*kept, *others):
            write(mask, one, one.batch.response_mask)
            with base.role("reference"):
                write(ref, one, base.training_logprobs(one.batch, temperature=config.rollout.temperature))
    for row, rollout in enumerate(rollouts):
        engine[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
    return Experience(rollouts, mask, engine, old, ref, entropy, None if head is None else values), kept


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
