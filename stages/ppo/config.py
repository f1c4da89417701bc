"""Settings of PPO. Imports pydantic only."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.strict import Contradiction, Flag, Section, StrictModel, differs
from rewards.component_config import repeated_names
from rewards.composite_config import EnsembleRewardConfig, LearnedRewardConfig, RewardConfig
from stages.rollouts.config import RolloutConfig


class FixedKLConfig(StrictModel):
    """`kl_coef` stays as it is."""

    type: Literal["fixed"] = "fixed"


class AdaptiveKLConfig(StrictModel):
    """`kl_coef` follows a target (Ziegler et al. 2019, section 2.2)."""

    type: Literal["adaptive"] = "adaptive"

    target: float = Field(gt=0)
    """KL per response that is aimed at, in nats."""

    horizon: float = Field(default=10000.0, gt=0)
    """Episodes over which the coefficient may change by a factor e at most a fifth of an error."""


AdvantageEstimator = Literal["gae", "rloo", "grpo", "reinforce_plus_plus"]

# What only a critic reads, and what only GAE and REINFORCE++ read: refused beside an estimator that does not.
_MOST_TRIED = 100_000
"""Divisors of a batch are looked for up to here; beyond it no batch is meant."""

_CRITIC_FIELDS = ("gae_lambda", "value_coef", "value_clip_range", "critic_learning_rate", "critic_init")
_WITH_CRITIC = ("gae",)
_PER_TOKEN = ("gae", "reinforce_plus_plus")
_PER_GROUP = ("rloo", "grpo")

KLControllerConfig = Annotated[FixedKLConfig | AdaptiveKLConfig, Field(discriminator="type")]


class PPOConfig(Section):
    """PPO with a KL penalty against the SFT policy."""

    MOVED: ClassVar[Mapping[str, str]] = {
        "reward": "a key of earlier versions, now an entry of `rewards`; write `rewards: [{type: python, source: "
        "...}]` for a function, `[{type: remote, address: ...}]` for a server, `[{type: sentiment}]` for vader",
        "reward_ensemble": "a key of earlier versions, now an entry of `rewards`; write `rewards: [{type: ensemble, "
        "members: [...]}]`",
    }

    steps: int = Field(default=100, ge=1, le=10**9)
    """Rounds of rollout and update."""

    batch_size: int = Field(default=64, ge=2)
    """Episodes in one step."""

    minibatch_size: int = Field(default=32, ge=1)
    """Episodes in one optimizer step. Divides `batch_size`."""

    microbatch_size: int = Field(default=8, ge=1)
    """Episodes in one forward pass, at most. Divides `minibatch_size`."""

    microbatch_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one forward pass, at most: its episodes, sorted by length, times the longest. A longer one passes
    alone."""

    share_first_pass: Flag | Literal["auto"] = "auto"
    """The forward of a step's first optimizer step gives the old log-probabilities and values, too, and its graph is
    kept until then. `auto`: where its minibatch is one microbatch, so that memory hardly grows. One process only."""

    cache_trunk: Flag | Literal["auto"] = "auto"
    """Compute what lies below the lowest adapted block once an episode, for all roles and epochs. `auto`: where
    `model.tuning.layers` leaves such blocks and the model can be cut. `true` ends with an error where it cannot be."""

    compile_blocks: Flag = False
    """Compile the transformer blocks by `torch.compile` for all passes but generating: a fifth less time for them on a
    CPU, for about a minute at the start. Values differ by rounding. Needs a C++ compiler on a CPU."""

    advantage_estimator: AdvantageEstimator = "gae"
    """`gae` has a critic (Schulman et al. 2016). The others load none: `rloo` (Ahmadian et al. 2024) and `grpo` (Shao
    et al. 2024) compare the responses to one prompt, `reinforce_plus_plus` (Hu 2025) those of the whole batch."""

    responses_per_prompt: int = Field(default=1, ge=1)
    """Responses sampled for each prompt of a step. `rloo` and `grpo` need two or more. Divides `batch_size`."""

    num_ppo_epochs: int = Field(default=2, ge=1)
    """Passes over the episodes of a step."""

    learning_rate: float = Field(default=1.0e-4, gt=0, le=1)
    """Learning rate of the policy's adapter, linearly to 0."""

    critic_init: Literal["auto", "reward_model", "zero"] = "auto"
    """Where the critic starts: `reward_model` copies its adapter and head (Stiennon et al. 2020, appendix B.1), `zero`
    the SFT adapter, with a head that says 0: the mean of normalised scores. `auto`: `reward_model` where it can be."""

    critic_learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Learning rate of the critic's adapter and head. Default: `learning_rate`."""

    adam_epsilon: float = Field(default=1.0e-5, gt=0)
    """Epsilon of Adam: 1e-5 as in OpenAI's baselines, not PyTorch's 1e-8."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients of policy and critic are clipped, each to this norm."""

    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """The probability ratio is clipped to `1 +- clip_range`."""

    dual_clip: float | None = Field(default=None, gt=1)
    """Bounds the loss of tokens with negative advantage at this multiple of it (Ye et al. 2020): 3, say."""

    max_approx_kl: float | None = Field(default=None, gt=0)
    """An update stops early, before the optimizer step, where the policy has moved further than this from where the
    update began (nats a token)."""

    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus (Schulman et al. 2017, equation 9)."""

    ptx_coef: float = Field(default=0.0, ge=0)
    """Weight of the SFT loss on demonstrations (Ouyang et al. 2022, equation 2), one demonstration an episode."""

    value_clip_range: float = Field(default=0.2, gt=0)
    """New values stay within this distance of the old ones."""

    value_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token."""

    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """0 is one-step TD, 1 is Monte Carlo."""

    kl_coef: float = Field(default=0.05, ge=0)
    """Weight of the KL penalty, in score units a nat. The start value with an adaptive controller."""

    kl_controller: KLControllerConfig = FixedKLConfig()

    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token estimator of the KL (Schulman 2020, http://joschu.net/blog/kl-approx.html)."""

    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtracted from the rewards, or added to the policy loss."""

    whiten_advantages: Flag | Literal["auto"] = "auto"
    """Advantages of a step get mean 0 and variance 1. `auto` does it with `gae` and `reinforce_plus_plus`, whose papers
    do, and not with `rloo` and `grpo`, which compare within a prompt."""

    whiten_rewards: Flag = False
    """Shaped rewards of a step are divided by their standard deviation; the mean is kept."""

    normalize_scores: Flag = False
    """Divide the scores by the running standard deviation of all scores seen."""

    rewards: list[RewardConfig] | None = Field(default=None, min_length=1, max_length=100)
    """What the score is the sum of: reward models, rules, functions, servers, each with a weight or a threshold
    (docs/rewards.md). Default: the run's reward model, `[{type: learned}]`."""

    keep_rollouts: Flag = True
    """Write each step's prompts, responses and raw scores to `<run>/ppo/rollouts`, as Parquet."""

    score_clip: float | None = Field(default=None, gt=0)
    """Scores are clipped to `+- score_clip`, after normalising."""

    missing_eos_score: float | None = None
    """Replaces the score of a response without EOS (-1 in the TL;DR recipe)."""

    missing_eos_penalty: float | None = Field(default=None, ge=0)
    """Subtracted from the score of a response without EOS."""

    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts are dropped and counted."""

    generate_batch_size: int | None = Field(default=None, ge=1)
    """Prompts in one call of transformers' `generate`; fewer need less memory and give the same responses. Default:
    all of a step. vLLM batches by itself."""

    max_bad_steps: int = Field(default=3, ge=0)
    """Batches and optimizer steps with a value that is not finite are skipped; more than this end the stage."""

    max_kl_per_token: float | None = Field(default=5.0, gt=0)
    """The stage ends where the mean KL of policy and reference is more than this in a step (nats a token). 5 means that
    the reference gives a token a hundred and fiftieth of the policy's probability. `null` never ends it."""

    gradient_checkpointing: Flag = False
    """Recompute activations in the backward pass: less memory, a third more time."""

    rollout: RolloutConfig = RolloutConfig()

    def contradictions(self) -> Iterator[Contradiction]:
        """Batches that do not divide, settings without use, and two that exclude one another."""
        yield from self._batch_arithmetic()
        yield from self._estimator_relations()
        yield from self._rewards()
        if isinstance(self.kl_controller, AdaptiveKLConfig) and self.kl_coef == 0:
            yield Contradiction(
                ("kl_coef", "kl_controller"),
                "kl_coef=0 stays 0 under kl_controller.type=adaptive, which multiplies it; use a kl_coef above 0 to "
                "start from, or `kl_controller: {type: fixed}`",
            )

    def _batch_arithmetic(self) -> Iterator[Contradiction]:
        yield from self._divides("batch_size", "minibatch_size")
        yield from self._divides("minibatch_size", "microbatch_size")
        yield from self._divides("batch_size", "responses_per_prompt")

    def _divides(self, whole: str, part: str) -> Iterator[Contradiction]:
        problem = _remainder(whole, getattr(self, whole), part, getattr(self, part))
        if problem is not None:
            yield Contradiction((whole, part), problem)

    def _estimator_relations(self) -> Iterator[Contradiction]:
        estimator = self.advantage_estimator
        if estimator in _PER_GROUP and self.responses_per_prompt < 2:
            yield Contradiction(
                ("advantage_estimator", "responses_per_prompt"),
                f"advantage_estimator={estimator} compares the responses to one prompt, but responses_per_prompt="
                f"{self.responses_per_prompt}; use responses_per_prompt=2 or more (4 is usual)",
            )
        unused = [] if estimator in _WITH_CRITIC else list(_CRITIC_FIELDS)
        unused += [] if estimator in _PER_TOKEN else ["gamma"]
        for name in unused:
            if differs(self, name):
                yield Contradiction(
                    (name, "advantage_estimator"),
                    f"{name} is set, but advantage_estimator={estimator} does not use it; remove {name}, or use "
                    f"advantage_estimator=gae",
                )

    def _rewards(self) -> Iterator[Contradiction]:
        if self.missing_eos_score is not None and self.missing_eos_penalty is not None:
            yield Contradiction(
                ("missing_eos_score", "missing_eos_penalty"),
                "missing_eos_score and missing_eos_penalty are both set; a missing EOS is either replaced or "
                "penalised: drop one of the two",
            )
        yield from repeated_names(self.reward_components)
        if self.critic_init == "reward_model" and not self.is_scored_by_reward_model:
            yield Contradiction(
                ("critic_init", "rewards"),
                "critic_init=reward_model, but `rewards` gives scores in other units than the run's reward model alone "
                "(weight 1, neither normalised nor clipped); use `critic_init: zero` or `auto`",
            )

    @property
    def reward_components(self) -> list[RewardConfig]:
        """`rewards` with its default."""
        return [LearnedRewardConfig()] if self.rewards is None else self.rewards

    @property
    def is_scored_by_reward_model(self) -> bool:
        """Whether a score is in the units of the run's own reward model: nothing else judges and it is not shaped."""
        first, *others = self.reward_components
        plain = first.weight == 1 and first.threshold is None and first.normalize == "none" and first.clip is None
        match first:
            case LearnedRewardConfig(path=None) | EnsembleRewardConfig(with_own=True):
                return plain and not others
            case _:
                return False

    @property
    def has_critic(self) -> bool:
        """Whether the estimator needs a critic."""
        return self.advantage_estimator in _WITH_CRITIC

    @property
    def shares_first_pass(self) -> bool:
        """`share_first_pass` with `auto` resolved."""
        if self.share_first_pass == "auto":
            return self.minibatch_size == self.microbatch_size and self.microbatch_tokens is None
        return self.share_first_pass

    @property
    def whitens_advantages(self) -> bool:
        """`whiten_advantages` with `auto` resolved."""
        if self.whiten_advantages == "auto":
            return self.advantage_estimator in _PER_TOKEN
        return self.whiten_advantages


def _remainder(whole_name: str, whole: int, part_name: str, part: int) -> str | None:
    """What to say, with the nearest values that work, unless `part` divides `whole`."""
    if part <= whole and whole % part == 0:
        return None
    small = [value for value in range(1, min(math.isqrt(whole), _MOST_TRIED) + 1) if whole % value == 0]
    divisors = {*small, *(whole // value for value in small)}
    nearest = sorted(sorted(divisors, key=lambda value: (abs(value - part), value))[:3])
    return (
        f"{whole_name}={whole} is not divisible by {part_name}={part}; use {part_name}={', '.join(map(str, nearest))}"
    )
