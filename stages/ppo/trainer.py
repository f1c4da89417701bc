"""Proximal policy optimisation with a KL penalty: one step of it, to be read beside the papers.

Schulman et al. 2017 (https://arxiv.org/abs/1707.06347) for the objective, Ziegler et al. 2019
(https://arxiv.org/abs/1909.08593) and Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325) for its use on
language models, Huang et al. 2024 (https://arxiv.org/abs/2403.17031) for the details.

Departures: policy and critic are adapters on one frozen base, so their gradients are clipped apart; the old
log-probabilities are the trainer's own, and those of another engine only weigh the loss by truncated
importance sampling (`stages.algorithms.importance`).

All parts are injected. Shape legend: B = episodes, T = response tokens, N = episodes of a microbatch.
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import StageError
from rewards.contract import Episode, RewardFunction
from stages.algorithms.advantages import estimate_gae, shape_rewards
from stages.algorithms.importance import importance_weights
from stages.algorithms.kl import estimate_kl
from stages.algorithms.masking import masked_rescale, masked_whiten
from stages.algorithms.ppo_loss import ppo_policy_loss, ppo_value_loss
from stages.ppo.config import PPOConfig
from stages.ppo.controllers import KLController, ScoreShaper
from stages.ppo.experience import Experience, PPOModels, collect_experience
from stages.ppo.measure import StepClock, mean_rows, step_metrics
from stages.rollouts.contract import Rollout, RolloutEngine
from stages.seeds import derive_seed, row_seeds

logger = logging.getLogger(__name__)


class PPOTrainer:
    """The policy update, step by step."""

    def __init__(
        self,
        *,
        config: PPOConfig,
        models: PPOModels,
        rollout_engine: RolloutEngine,
        reward_function: RewardFunction,
        to_episode: Callable[[Rollout], Episode],
        correct_rollouts: bool,
        seed: int,
    ) -> None:
        """Make optimizer, schedule and controllers.

        Args:
            config: All settings.
            models: Policy, reference, critic and reward model on one base.
            rollout_engine: Generates with the policy that it was given last.
            reward_function: Judges episodes.
            to_episode: Decodes a rollout for the reward function.
            correct_rollouts: Weigh tokens by trainer over engine probability; for engines other than the
                trainer's own weights.
            seed: Rollouts and shuffles derive from it and the step's number.
        """
        self.config = config
        self.models = models
        self.rollout_engine = rollout_engine
        self.reward_function = reward_function
        self.to_episode = to_episode
        self.correct_rollouts = correct_rollouts
        self.seed = seed
        self.kl_controller = KLController(config.kl_controller, config.kl_coef)
        self.score_shaper = ScoreShaper(config)
        _warn_of_biased_kl(config)
        self.num_steps = 0
        self.num_bad_steps = 0
        self.policy_parameters = models.shared_base.parameters("policy")
        self.critic_parameters = [
            *models.shared_base.parameters("critic"),
            *models.value_head.parameters(),
        ]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.policy_parameters, "lr": config.learning_rate},
                {"params": self.critic_parameters, "lr": config.critic_learning_rate or config.learning_rate},
            ],
            eps=config.adam_epsilon,
            weight_decay=0.0,
        )
        self.num_updates = config.steps * config.num_ppo_epochs * (config.batch_size // config.minibatch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: max(1.0 - step / self.num_updates, 0.0)
        )

    def step(self, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
        """Act, judge, learn.

        Args:
            prompts: `batch_size` prompts as token ids.

        Returns:
            The metrics of this step (DESIGN section 6).

        Raises:
            StageError: More than `max_bad_steps` updates were not finite, or the engine's log-probabilities
                are not those of the trainer.
        """
        config, clock = self.config, StepClock()
        with clock.measure("generate"):
            seeds = row_seeds(derive_seed(self.seed, "rollouts", self.num_steps), len(prompts))
            rollouts = self.rollout_engine.generate(prompts, config.rollout, seeds=seeds)
        with clock.measure("score"):
            scores = torch.tensor(self.reward_function([self.to_episode(rollout) for rollout in rollouts]))
        with clock.measure("experience"):
            experience = collect_experience(
                rollouts,
                self.models,
                temperature=config.rollout.temperature,
                microbatch_size=config.microbatch_size,
            )
        self._check_engine(experience)
        finished = torch.tensor([rollout.finished for rollout in rollouts])
        rewards = self._rewards(experience, self.score_shaper(scores, finished))
        advantages, returns = estimate_gae(
            rewards,
            experience.values,
            experience.response_mask,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, experience.response_mask)
        with clock.measure("update"):
            losses = self._update(experience, advantages, returns)
        kl_coef = self.kl_controller.value
        metrics = step_metrics(experience, scores, rewards, returns, kl_coef=kl_coef) | losses
        self.kl_controller.update(metrics["objective/kl"], num_episodes=len(rollouts))
        self.num_steps += 1
        with clock.measure("sync"):
            self.rollout_engine.load_policy("policy")
        return metrics | clock.metrics(num_tokens=int(experience.response_mask.sum()))

    def _rewards(self, experience: Experience, scores: Float[Tensor, " B"]) -> Float[Tensor, "B T"]:
        """Per-token rewards: the KL penalty on every token, the score on the last one."""
        config = self.config
        token_kl = estimate_kl(experience.old_logprobs, experience.ref_logprobs, estimator=config.kl_estimator)
        in_reward = config.kl_placement == "reward"
        rewards = shape_rewards(
            scores,
            token_kl,
            experience.response_mask,
            kl_coef=self.kl_controller.value if in_reward else 0.0,
        )
        return masked_rescale(rewards, experience.response_mask) if config.whiten_rewards else rewards

    def _update(
        self, experience: Experience, advantages: Float[Tensor, "B T"], returns: Float[Tensor, "B T"]
    ) -> dict[str, float]:
        """`num_ppo_epochs` passes over the episodes, freshly shuffled in each."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "shuffle", self.num_steps))
        rows: list[dict[str, float]] = []
        for _ in range(self.config.num_ppo_epochs):
            order = torch.randperm(len(experience.rollouts), generator=generator)
            for minibatch in torch.split(order, self.config.minibatch_size):
                rows.append(self._update_minibatch(experience, advantages, returns, minibatch))
        return mean_rows(rows)

    def _update_minibatch(
        self,
        experience: Experience,
        advantages: Float[Tensor, "B T"],
        returns: Float[Tensor, "B T"],
        minibatch: Tensor,
    ) -> dict[str, float]:
        """One optimizer step; skipped and counted if a loss or a gradient is not finite."""
        num_tokens = int(experience.response_mask[minibatch].sum())
        totals: dict[str, float] = {}
        for rows in torch.split(minibatch, self.config.microbatch_size):
            found = self._backward_microbatch(experience, advantages, returns, rows, num_tokens)
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value
        norms = {
            "policy/grad_norm": self._clip(self.policy_parameters),
            "value/grad_norm": self._clip(self.critic_parameters),
        }
        if all(math.isfinite(value) for value in (*totals.values(), *norms.values())):
            self.optimizer.step()
        else:
            self._count_bad_step(totals | norms)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return totals | norms

    def _backward_microbatch(
        self,
        experience: Experience,
        advantages: Float[Tensor, "B T"],
        returns: Float[Tensor, "B T"],
        rows: Tensor,
        num_tokens: int,
    ) -> dict[str, float]:
        """Add one microbatch's share to the gradients.

        Every term is divided by the response tokens of the whole minibatch, so that the gradient does not
        depend on how the minibatch is cut.
        """
        config, base = self.config, self.models.shared_base
        batch = self.models.collate([experience.rollouts[row] for row in rows.tolist()])
        mask = batch.response_mask

        def own(values: Float[Tensor, "B T"]) -> Float[Tensor, "N T"]:
            return values[rows, : mask.shape[1]].to(base.device)

        old_logprobs = own(experience.old_logprobs)
        weights = (
            importance_weights(
                old_logprobs,
                own(experience.rollout_logprobs),
                mask,
                level="token",
                mode="truncate",
                cap=config.rollout.importance_cap,
            ).weights
            if self.correct_rollouts
            else None
        )
        # A role encloses its backward: activation checkpointing runs the forward again in it.
        with base.role("policy"):
            logprobs = base.training_logprobs(batch, temperature=config.rollout.temperature)
            policy = ppo_policy_loss(
                logprobs,
                old_logprobs,
                own(advantages),
                mask,
                clip_range=config.clip_range,
                dual_clip=None,
                num_tokens=num_tokens,
                importance_weights=weights,
            )
            loss = policy.loss
            if config.kl_placement == "loss":
                token_kl = estimate_kl(logprobs, own(experience.ref_logprobs), estimator=config.kl_estimator)
                loss = loss + self.kl_controller.value * (token_kl * mask).sum() / num_tokens
            torch.autograd.backward(loss)
        with base.role("critic"):
            value = ppo_value_loss(
                self.models.value_head(base.response_hidden_states(batch)),
                own(experience.values),
                own(returns),
                mask,
                value_clip_range=config.value_clip_range,
                num_tokens=num_tokens,
            )
            torch.autograd.backward(config.value_coef * value.loss)
        return {
            "policy/loss": loss.item(),
            "policy/approx_kl": policy.approx_kl.item(),
            "policy/clip_fraction": policy.clip_fraction.item(),
            "policy/ratio": policy.ratio.item(),
            "value/loss": value.loss.item(),
            "value/clip_fraction": value.clip_fraction.item(),
        }

    def _clip(self, parameters: list[torch.nn.Parameter]) -> float:
        return float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))

    def _count_bad_step(self, values: dict[str, float]) -> None:
        self.num_bad_steps += 1
        bad = sorted(name for name, value in values.items() if not math.isfinite(value))
        logger.warning("step %d: %s not finite; update skipped", self.num_steps + 1, ", ".join(bad))
        if self.num_bad_steps > self.config.max_bad_steps:
            raise StageError(
                f"ppo: {self.num_bad_steps} updates were not finite ({', '.join(bad)}), more than "
                f"ppo.max_bad_steps={self.config.max_bad_steps}; lower `ppo.learning_rate` or raise `ppo.kl_coef`"
            )

    def _check_engine(self, experience: Experience) -> None:
        """End the stage where the engine did not sample from the trainer's policy."""
        delta = (experience.old_logprobs - experience.rollout_logprobs)[experience.response_mask]
        rms = float(delta.square().mean().sqrt())
        bound = self.config.rollout.max_logprob_delta_rms
        if not rms <= bound:
            raise StageError(
                f"step {self.num_steps + 1}: log-probabilities of trainer and rollout engine differ by {rms:.3f} nats "
                f"(RMS); at most ppo.rollout.max_logprob_delta_rms={bound} is expected of one policy in two "
                f"implementations: the engine runs another adapter, base or temperature "
            )


def _warn_of_biased_kl(config: PPOConfig) -> None:
    """Name a combination whose gradient is not that of the KL (see the header of `stages.algorithms.kl`)."""
    match config.kl_placement, config.kl_estimator:
        case ("reward", "k1") | ("loss", "k2"):
            return
        case "loss", "k1":
            what = "has expected gradient 0 and holds nothing"
        case _:
            what = "has a gradient that is not that of the KL"
    logger.warning(
        "ppo.kl_estimator=%s with ppo.kl_placement=%s %s; `k1` in the reward and `k2` in the loss are unbiased",
        config.kl_estimator, config.kl_placement, what,
    )  # fmt: skip
