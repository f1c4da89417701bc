"""One group of parameters under one optimizer, on one rank or several.

PPO's losses do not come from one module's forward: two roles of one base run one after the other, each with its
own backward. So the gradients of the small adapters are summed over the ranks once an optimizer step, when all
microbatches have added theirs: what DistributedDataParallel does under `no_sync`, without its wrapper, which wants
to own the forward (docs/decisions/0004). ZeRO is in `stages.accelerator`.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from stages.ranks import Ranks


class Learner(Protocol):
    """Collects gradients over microbatches and ranks, and applies them."""

    def backward(self, loss: Tensor) -> None:
        """Add a microbatch's gradients.

        Args:
            loss: This microbatch's share of the loss of the whole minibatch: shares add up, over microbatches and
                ranks.
        """
        ...

    def finish(self, *, apply: bool) -> float:
        """End an optimizer step: sum over ranks, clip, apply, forget the gradients.

        Args:
            apply: False forgets the gradients without a step. The same on all ranks.

        Returns:
            The norm of the summed gradient before clipping; where it is not finite, nothing was applied.
        """
        ...

    def set_learning_rate_factor(self, factor: float) -> None:
        """Scale the learning rate that the learner was made with."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer on this rank."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


class ReplicatedLearner:
    """Every rank holds all parameters and the whole state of AdamW; gradients are summed over the ranks."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        adam_epsilon: float,
        max_grad_norm: float,
        ranks: Ranks,
    ) -> None:
        """Make the optimizer, without weight decay.

        Args:
            parameters: In the same order on all ranks, with equal values.
            learning_rate: Before any factor.
            adam_epsilon: 1e-5 in OpenAI's baselines.
            max_grad_norm: The summed gradient is clipped to this norm.
            ranks: Processes of the stage.
        """
        self.parameters = list(parameters)
        self._learning_rate = learning_rate
        self._max_grad_norm = max_grad_norm
        self._ranks = ranks
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, eps=adam_epsilon, weight_decay=0.0)

    def backward(self, loss: Tensor) -> None:
        """Add a microbatch's gradients."""
        torch.autograd.backward(loss)

    def finish(self, *, apply: bool) -> float:
        """Sum over ranks, clip, apply, forget."""
        self._sum_over_ranks()
        norm = float(clip_grad_norm_(self.parameters, self._max_grad_norm))
        if apply and math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def set_learning_rate_factor(self, factor: float) -> None:
        """Scale the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate * factor

    def state_dict(self) -> dict[str, Any]:
        """State of AdamW."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        self.optimizer.load_state_dict(state)

    def _sum_over_ranks(self) -> None:
        """One flat message instead of one a tensor; a parameter that got no gradient here counts as 0."""
        if self._ranks.size == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        flat = self._ranks.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
