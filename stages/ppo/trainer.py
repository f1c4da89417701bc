"""Proximal policy optimisation with a KL penalty: one step of it, to be read beside the papers.

Schulman et al. 2017 (https://arxiv.org/abs/1707.06347) for the objective, Ziegler et al. 2019
(https://arxiv.org/abs/1909.08593) and Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325) for its use on
language models, Huang et al. 2024 (https://arxiv.org/abs/2403.17031) for the details.

Departures: policy and critic are adapters on one frozen base, so their gradients are clipped apart; the old
log-probabilities are the trainer's own, and those of another engine only weigh the loss by importance sampling
(`stages.algorithms.importance`).

All parts are injected. With several ranks each samples and judges its share of the prompts; from then on all know
all episodes. Shape legend: B = episodes, T = response tokens.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from data.errors import StageError
from rewards.composite import CompositeReward
from rewards.contract import Episode
from rewards.stored import StoredStep, write_step
from stages.algorithms.advantages import estimate_advantages, shape_rewards
from stages.algorithms.importance import importance_weights
from stages.algorithms.kl import estimate_kl
from stages.algorithms.masking import masked_mean, masked_rescale, masked_whiten
from stages.ppo.config import PPOConfig
from stages.ppo.controllers import KLController, ScoreShaper
from stages.ppo.experience import Experience, collect_experience, gather_experience
from stages.ppo.guard import BadStepCounter, NegativeKLWatch, check_kl
from stages.ppo.measure import StepClock, response_kl, step_metrics
from stages.ppo.passes import Microbatch, PPOModels
from stages.ppo.update import Targets, Update
from stages.ranks import Ranks
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
        rewards: CompositeReward,
        to_episode: Callable[[Rollout], Episode],
        update: Update,
        bad_steps: BadStepCounter,
        ranks: Ranks,
        seed: int,
        same_weights: bool = True,
        rollouts_dir: Path | None = None,
    ) -> None:
        """Put the parts together and make the controllers.

        Args:
            config: All settings.
            models: The roles on one base.
            rollout_engine: Generates with the policy that it was given last.
            rewards: Judges episodes; its state moves with the steps.
            to_episode: Decodes a rollout for the rewards.
            update: Moves policy and critic.
            bad_steps: Counts what is not finite; the update's own.
            ranks: Processes of the stage.
            seed: Rollouts derive from it and the step's number.
            same_weights: False where the engine serves other base weights on purpose (the original ones beside a
                trainer in NF4): a large gap is then corrected and told, and no fault.
            rollouts_dir: Where this rank writes the rollouts of each step with their raw scores; None writes none.
        """
        self.config = config
        self.models = models
        self.rollout_engine = rollout_engine
        self.rewards = rewards
        self.to_episode = to_episode
        self.update = update
        self.bad_steps = bad_steps
        self.ranks = ranks
        self.seed = seed
        self.same_weights = same_weights
        self.rollouts_dir = rollouts_dir
        self.kl_controller = KLController(config.kl_controller, config.kl_coef)
        self.score_shaper = ScoreShaper(config)
        self.kl_watch = NegativeKLWatch()
        self.num_steps = 0
        self.clock = StepClock()
        _warn_of_biased_kl(config)

    def step(self, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
        """Act, judge, learn.

        Args:
            prompts: `batch_size` prompts as token ids, the same on all ranks; the responses to one prompt stand
                together.

        Returns:
            The metrics of this step (DESIGN section 6).

        Raises:
            StageError: More than `max_bad_steps` batches or updates were not finite, the KL has exploded, the reward
                function failed, or the engine's log-probabilities are not those of the trainer.
        """
        config, clock = self.config, StepClock()
        self.clock = clock
        with clock.measure("generate"):
            seeds = row_seeds(derive_seed(self.seed, "rollouts", self.num_steps), len(prompts))
            rollouts = self.ranks.together(
                lambda: self.rollout_engine.generate(
                    self.ranks.share(prompts), config.rollout, seeds=self.ranks.share(seeds)
                )
            )
        kl_coef = self.kl_controller.value
        with self.models.shared_base.cached_trunk():
            with clock.measure("score"):
                episodes = [self.to_episode(rollout) for rollout in rollouts]
                rows = self.ranks.gather(self.ranks.together(lambda: self.rewards.judge(episodes)))
                state, combined = self.rewards.state, self.rewards.combine(rows)
                scores = torch.tensor(combined.totals)
            with clock.measure("experience"):
                own, passed = collect_experience(rollouts, self.models, config, first=self._first_minibatch())
                experience = gather_experience(own, self.ranks)
            if self.rollouts_dir is not None:
                with clock.measure("keep"):
                    everything = episodes if self.ranks.size == 1 else list(map(self.to_episode, experience.rollouts))
                    parts = self.rewards.by_column(rows), combined.totals
                    components = self.rewards.components
                    write_step(self.rollouts_dir, StoredStep(self.num_steps + 1, everything, components, state, *parts))
            is_finite = self._is_finite(experience, scores)
            metrics = combined.metrics | self._learn(experience, scores, passed, clock) if is_finite else {}
        if is_finite:
            with clock.measure("sync"):
                metrics |= self.rollout_engine.load_policy("policy").metrics
        self.num_steps += 1
        metrics |= {"objective/kl_coef": kl_coef, "train/bad_steps": float(self.bad_steps.count)}
        return metrics | clock.metrics(num_tokens=int(experience.response_mask.sum()))

    def _is_finite(self, experience: Experience, scores: Float[Tensor, " B"]) -> bool:
        values = {
            "scores": float(scores.sum()),
            "log-probabilities or values": 0.0 if experience.is_finite() else torch.nan,
        }
        return self.bad_steps.check(self.num_steps + 1, values, "batch")

    def _first_minibatch(self) -> list[int]:
        """Episodes whose forward with gradients serves twice; none with several ranks: they update others' episodes."""
        shares = self.config.shares_first_pass and self.ranks.size == 1
        return self.update.first_minibatch(step=self.num_steps) if shares else []

    def _learn(
        self, experience: Experience, scores: Float[Tensor, " B"], passed: Sequence[Microbatch], clock: StepClock
    ) -> dict[str, float]:
        """Shape rewards, estimate advantages, update, move the KL coefficient."""
        config, mask = self.config, experience.response_mask
        self._check_engine(experience)
        kl_per_token = response_kl(experience).sum() / mask.sum()
        check_kl(self.num_steps + 1, kl_per_token.item(), config.max_kl_per_token)
        finished = torch.tensor([rollout.finished for rollout in experience.rollouts])
        rewards = self._rewards(experience, self.score_shaper(scores, finished))
        advantages, returns = estimate_advantages(
            rewards,
            experience.values,
            mask,
            torch.arange(len(scores)) // config.responses_per_prompt,
            estimator=config.advantage_estimator,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        if config.whitens_advantages:
            advantages = masked_whiten(advantages, mask)
        weights, gap = self._importance_weights(experience)
        in_loss = config.kl_placement == "loss"
        targets = Targets(advantages, returns, weights, self.kl_controller.value if in_loss else 0.0)
        with clock.measure("update"):
            losses = self.update(experience, targets, step=self.num_steps, first=passed)
        metrics = step_metrics(experience, scores, rewards, returns, kl_coef=self.kl_controller.value)
        self.kl_controller.update(metrics["objective/kl"], num_episodes=len(scores))
        negative = self.kl_watch.see(self.num_steps + 1, metrics["objective/kl"], metrics["objective/kl_stderr"])
        return metrics | losses | gap | {"diagnosis/negative_kl": float(negative)}

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

    def _importance_weights(self, experience: Experience) -> tuple[Float[Tensor, "B T"] | None, dict[str, float]]:
        """Weights for tokens that another engine sampled, where the configuration asks for them."""
        correction = self.config.rollout.correction
        if correction is None:
            return None, {}
        level, mode = correction
        found = importance_weights(
            experience.old_logprobs,
            experience.rollout_logprobs,
            experience.response_mask,
            level=level,
            mode=mode,
            cap=self.config.rollout.importance_cap,
        )
        return found.weights, {
            "rollout/importance_weight_mean": masked_mean(found.weights, experience.response_mask).item(),
            "rollout/importance_clipped_fraction": found.clipped_fraction.item(),
        }

    def _check_engine(self, experience: Experience) -> None:
        """End the stage where the engine did not sample from the trainer's policy."""
        delta = (experience.old_logprobs - experience.rollout_logprobs)[experience.response_mask]
        rms = float(delta.square().mean().sqrt())
        bound = self.config.rollout.max_logprob_delta_rms
        if rms > bound and not self.same_weights:
            if self.num_steps == 0:
                logger.warning(
                    "log-probabilities of trainer and rollout engine differ by %.3f nats (RMS): the engine serves "
                    "the original base weights, the trainer computes in NF4; importance sampling corrects a part of "
                    "it",
                    rms,
                )
        elif rms > bound:
            raise StageError(
                f"step {self.num_steps + 1}: log-probabilities of trainer and rollout engine differ by {rms:.3f} nats "
                f"(RMS); at most ppo.rollout.max_logprob_delta_rms={bound} is expected of one policy in two "
                f"implementations: the engine runs another adapter, base or temperature. See `sync/*` in "
                f"metrics.jsonl; `rollout.engine: hf` has no such gap"
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
