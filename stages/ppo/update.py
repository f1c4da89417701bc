"""The update of policy and critic on the experience of one step.

Losses are divided by the response tokens of the whole minibatch, over all its microbatches and ranks, so that the
gradient does not depend on how the minibatch is cut. Every rank knows the whole experience and the same shuffle; it
takes its share of each minibatch.

Shape legend: B = episodes of the step, T = response tokens, N = episodes of a microbatch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stages.algorithms.kl import estimate_kl
from stages.algorithms.ppo_loss import entropy_bonus, nll_loss, ppo_policy_loss, ppo_value_loss
from stages.learner import Learner
from stages.ppo.config import PPOConfig
from stages.ppo.experience import Experience
from stages.ppo.guard import BadStepCounter
from stages.ppo.measure import mean_rows
from stages.ppo.passes import Microbatch, PPOModels, cut_into_microbatches, pass_critic, pass_policy
from stages.ranks import Ranks
from stages.seeds import batch_rows, derive_seed

Demonstration = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Targets:
    """What the update moves towards; constants. 0 on padding.

    Attributes:
        advantages: Of each token.
        returns: Targets of the critic; None without one.
        importance_weights: Of each token's policy loss; None where the trainer itself sampled.
        kl_coef: Weight of the KL in the loss; 0 where it is in the rewards.
    """

    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None
    importance_weights: Float[Tensor, "B T"] | None
    kl_coef: float


class Update:
    """Makes the optimizer steps of one PPO step after the other."""

    def __init__(
        self,
        *,
        config: PPOConfig,
        models: PPOModels,
        policy: Learner,
        critic: Learner | None,
        ranks: Ranks,
        bad_steps: BadStepCounter,
        demonstrations: Sequence[Demonstration],
        seed: int,
    ) -> None:
        """Keep the parts.

        Args:
            config: All settings.
            models: The roles.
            policy: Learner of the policy's adapter.
            critic: Learner of the critic's adapter and head; None without a critic.
            ranks: Processes of the stage.
            bad_steps: Counts what is not finite.
            demonstrations: Prompts and responses as ids, for the SFT loss; empty without one.
            seed: Shuffles derive from it and the step's number.
        """
        self._config = config
        self._models = models
        self._policy = policy
        self._critic = critic
        self._ranks = ranks
        self._bad_steps = bad_steps
        self._demonstrations = demonstrations
        self._seed = seed
        self._updates_per_step = config.num_ppo_epochs * (config.batch_size // config.minibatch_size)

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the whole stage."""
        return self._config.steps * self._updates_per_step

    def first_minibatch(self, *, step: int) -> list[int]:
        """Numbers of the episodes of a step's first optimizer step."""
        minibatch: list[int] = next(self._minibatches(step)).tolist()
        return minibatch

    def __call__(
        self, experience: Experience, targets: Targets, *, step: int, first: Sequence[Microbatch] = ()
    ) -> dict[str, float]:
        """Make `num_ppo_epochs` passes over the episodes, freshly shuffled in each.

        Args:
            experience: The episodes of all ranks.
            targets: Advantages and returns, the same on all ranks.
            step: Number of the PPO step, from 0.
            first: The first optimizer step's microbatches, if they have passed already; their graphs end here.

        Returns:
            `policy/*` and `value/*`, means over the optimizer steps that were begun; `policy/updates`, how many were
            made.

        Raises:
            StageError: Too many were not finite.
        """
        rows: list[dict[str, float]] = []
        num_made = 0
        for number, minibatch in enumerate(self._minibatches(step), start=step * self._updates_per_step):
            microbatches = first if not rows and first else self._own_microbatches(experience, minibatch)
            found, made = self._minibatch(experience, targets, minibatch, microbatches, number)
            rows.append(found)
            num_made += made
            if self._has_moved_too_far(found):
                break
        return mean_rows(rows) | {"policy/updates": float(num_made)}

    def _minibatches(self, step: int) -> Iterator[Tensor]:
        """Numbers of the episodes of each optimizer step, the same on all ranks."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "shuffle", step))
        for _ in range(self._config.num_ppo_epochs):
            order = torch.randperm(self._config.batch_size, generator=generator)
            yield from torch.split(order, self._config.minibatch_size)

    def _own_microbatches(self, experience: Experience, minibatch: Tensor) -> list[Microbatch]:
        """This rank's share of a minibatch, in passes."""
        own = self._ranks.share(minibatch.tolist())
        return cut_into_microbatches(experience.rollouts, own, self._models, self._config)

    def _has_moved_too_far(self, found: dict[str, float]) -> bool:
        limit = self._config.max_approx_kl
        return limit is not None and found["policy/approx_kl"] > limit

    def _minibatch(
        self,
        experience: Experience,
        targets: Targets,
        minibatch: Tensor,
        microbatches: Sequence[Microbatch],
        number: int,
    ) -> tuple[dict[str, float], bool]:
        """One optimizer step, and whether it was made."""
        num_tokens = int(experience.response_mask[minibatch].sum())
        self._set_learning_rate(number)
        totals: dict[str, float] = {}
        for microbatch in microbatches:
            _add(totals, self._policy_microbatch(experience, targets, microbatch, num_tokens))
            if self._critic is not None:
                _add(totals, self._value_microbatch(experience, targets, microbatch, num_tokens))
        if self._config.ptx_coef > 0:
            _add(totals, self._demonstrations_minibatch(number, len(minibatch)))
        _add(totals, _padding(microbatches))
        totals = self._sum_over_ranks(totals)
        totals["policy/padding_share"] = totals.pop("padding") / totals.pop("positions")
        is_finite = self._bad_steps.check(number // self._updates_per_step + 1, totals, "update")
        apply = is_finite and not self._has_moved_too_far(totals)
        norms = {"policy/grad_norm": self._policy.finish(apply=apply)}
        if self._critic is not None:
            norms["value/grad_norm"] = self._critic.finish(apply=apply)
        if apply:
            apply = self._bad_steps.check(number // self._updates_per_step + 1, norms, "update")
        return totals | norms, apply

    def _set_learning_rate(self, number: int) -> None:
        """Linearly to 0 over all updates of the stage, whether they were made or skipped."""
        factor = 1.0 - number / self.num_updates
        self._policy.set_learning_rate_factor(factor)
        if self._critic is not None:
            self._critic.set_learning_rate_factor(factor)

    def _policy_microbatch(
        self, experience: Experience, targets: Targets, microbatch: Microbatch, num_tokens: int
    ) -> dict[str, float]:
        """Add one microbatch's share to the policy's gradients."""
        config, base = self._config, self._models.shared_base
        mask = microbatch.batch.response_mask

        def own(values: Float[Tensor, "B T"]) -> Float[Tensor, "N T"]:
            return values[microbatch.rows, : mask.shape[1]].to(base.device)

        # A role encloses its backward: activation checkpointing runs the forward again in it.
        with base.role("policy"):
            metrics: dict[str, Tensor] = {}
            logprobs, entropy = microbatch.logprobs, microbatch.entropy
            if logprobs is None:
                logprobs, entropy = pass_policy(microbatch.batch, self._models, config, with_entropy=False)
            policy = ppo_policy_loss(
                logprobs,
                own(experience.old_logprobs),
                own(targets.advantages),
                mask,
                clip_range=config.clip_range,
                dual_clip=config.dual_clip,
                num_tokens=num_tokens,
                importance_weights=None if targets.importance_weights is None else own(targets.importance_weights),
            )
            loss = policy.loss
            if config.kl_placement == "loss":
                token_kl = estimate_kl(logprobs, own(experience.ref_logprobs), estimator=config.kl_estimator)
                loss = loss + targets.kl_coef * token_kl[mask].sum() / num_tokens
            if config.entropy_coef > 0:
                assert entropy is not None
                metrics["policy/entropy_bonus"] = bonus = entropy_bonus(entropy, mask, num_tokens=num_tokens)
                loss = loss - config.entropy_coef * bonus
            self._policy.backward(loss)
        metrics |= {
            "policy/loss": loss,
            "policy/approx_kl": policy.approx_kl,
            "policy/clip_fraction": policy.clip_fraction,
            "policy/ratio": policy.ratio,
        }
        if config.dual_clip is not None:
            metrics["policy/dual_clip_fraction"] = policy.dual_clip_fraction
        return {name: value.item() for name, value in metrics.items()}

    def _value_microbatch(
        self, experience: Experience, targets: Targets, microbatch: Microbatch, num_tokens: int
    ) -> dict[str, float]:
        """Add one microbatch's share to the critic's gradients."""
        config, base = self._config, self._models.shared_base
        assert self._critic is not None and experience.values is not None and targets.returns is not None
        rows, mask = microbatch.rows, microbatch.batch.response_mask
        width = mask.shape[1]
        with base.role("critic"):
            value = ppo_value_loss(
                pass_critic(microbatch.batch, self._models) if microbatch.values is None else microbatch.values,
                experience.values[rows, :width].to(base.device),
                targets.returns[rows, :width].to(base.device),
                mask,
                value_clip_range=config.value_clip_range,
                num_tokens=num_tokens,
            )
            self._critic.backward(config.value_coef * value.loss)
        return {"value/loss": value.loss.item(), "value/clip_fraction": value.clip_fraction.item()}

    def _demonstrations_minibatch(self, number: int, size: int) -> dict[str, float]:
        """Add the SFT loss on as many demonstrations as the minibatch has episodes."""
        config, base = self._config, self._models.shared_base
        rows = batch_rows(len(self._demonstrations), size, number, seed=derive_seed(self._seed, "demonstrations", 0))
        chosen = [self._demonstrations[row] for row in rows]
        num_tokens = sum(len(response) for _, response in chosen)
        own = self._ranks.share(chosen)
        total = 0.0
        for start in range(0, len(own), config.microbatch_size):
            batch = self._models.collate_ids(own[start : start + config.microbatch_size])
            with base.role("policy"):
                logprobs = base.training_logprobs(batch, temperature=1.0)
                loss = nll_loss(logprobs, batch.response_mask, num_tokens=num_tokens)
                self._policy.backward(config.ptx_coef * loss)
            total += loss.item()
        return {"policy/ptx_loss": total}

    def _sum_over_ranks(self, totals: dict[str, float]) -> dict[str, float]:
        if self._ranks.size == 1:
            return totals
        values = torch.tensor(list(totals.values()), dtype=torch.float64, device=self._ranks.device)
        return dict(zip(totals, self._ranks.sum(values).tolist(), strict=True))


def _padding(microbatches: Sequence[Microbatch]) -> dict[str, float]:
    """Positions that pass through a model, and those of them that are padding."""
    masks = [microbatch.batch.attention_mask for microbatch in microbatches]
    positions = sum(mask.numel() for mask in masks)
    return {"positions": float(positions), "padding": float(positions - sum(int(mask.sum()) for mask in masks))}


def _add(totals: dict[str, float], found: dict[str, float]) -> None:
    for name, value in found.items():
        totals[name] = totals.get(name, 0.0) + value
