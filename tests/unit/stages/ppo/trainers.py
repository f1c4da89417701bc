"""PPO trainers on a tiny Llama with generation by transformers and stub rewards, as the tests take them apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewards.composite import CompositeReward, Judge, member_columns
from rewards.composite_config import EnsembleRewardConfig
from rewards.contract import Episode, RewardFunction
from stages.accelerator import make_learner
from stages.learner import Learner, ReplicatedLearner
from stages.models.scalar_head import ScoreNormalization, ValueHead
from stages.models.shared_base import SharedBase
from stages.models.tuning import score_weight
from stages.ppo.config import PPOConfig
from stages.ppo.experience import Experience, collect_experience
from stages.ppo.guard import BadStepCounter
from stages.ppo.passes import PPOModels
from stages.ppo.trainer import PPOTrainer
from stages.ppo.update import Demonstration, Update
from stages.ranks import Ranks
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import PolicyVersion, Rollout
from stages.rollouts.hf_engine import HFEngine
from tests.unit.stages.parts import EOS, PAD, Folders, all_roles, random_rows

PROMPTS = random_rows([5, 2, 7, 1, 3, 4, 6, 2], seed=61)
MakeTrainer = Callable[..., PPOTrainer]


class Altered:
    """The engine of transformers with rollouts changed on their way."""

    def __init__(self, engine: HFEngine, alter: Callable[[Rollout], Rollout]) -> None:
        self._engine, self._alter = engine, alter
        self.version = 0
        self.seeds: list[Sequence[int]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, *, seeds: Sequence[int]
    ) -> list[Rollout]:
        """Generate and change."""
        self.seeds.append(seeds)
        return [self._alter(rollout) for rollout in self._engine.generate(prompts, sampling, seeds=seeds)]

    def load_policy(self, role: str) -> PolicyVersion:
        """Pass on."""
        loaded = self._engine.load_policy(role)
        self.version = loaded.number
        return loaded

    def state_dict(self) -> dict[str, Any]:
        """Pass on."""
        return self._engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Pass on."""
        self._engine.load_state_dict(state)

    def close(self) -> None:
        """Nothing to free."""


def ppo_config(**settings: Any) -> PPOConfig:
    """Two epochs of two minibatches of two microbatches."""
    rollout = {"engine": "hf", "max_new_tokens": 6} | settings.pop("rollout", {})
    sizes = {"steps": 3, "batch_size": 8, "minibatch_size": 4, "microbatch_size": 2, "num_ppo_epochs": 2}
    return PPOConfig.model_validate({**sizes, "learning_rate": 0.01, "rollout": rollout, **settings})


def even_share(episodes: Sequence[Episode]) -> list[float]:
    """A reward that can be learned: the share of even token ids."""
    return [sum(token % 2 == 0 for token in e.response_ids) / len(e.response_ids) for e in episodes]


def judged_by(reward: RewardFunction, config: PPOConfig) -> CompositeReward:
    """One function in the place of all that the configuration names."""
    components = config.reward_components
    judges = []
    for component in components:
        if isinstance(component, EnsembleRewardConfig):
            count = len(component.members) + component.with_own
            columns = [name for names in member_columns(component, [1] * count) for name in names]
            judges.append(Judge(tuple(columns), lambda episodes, count=count: [reward(episodes)] * count))
        else:
            judges.append(Judge.of(component, reward))
    return CompositeReward(components, judges)


def to_episode(rollout: Rollout) -> Episode:
    """An episode without texts."""
    return Episode("", "", rollout.prompt_ids, rollout.response_ids, "", rollout.finished)


def build_trainer(
    folders: Folders,
    config: PPOConfig,
    *,
    reward: Any = even_share,
    rollouts_dir: Path | None = None,
    alter: Callable[[Rollout], Rollout] = lambda rollout: rollout,
    moved: bool = False,
    seed: int = 5,
    shared: SharedBase | None = None,
    demonstrations: Sequence[Demonstration] = (),
    ranks: Ranks | None = None,
    deepspeed: dict[str, Any] | None = None,
    same_weights: bool = True,
) -> PPOTrainer:
    """A trainer on fresh roles; `moved` starts the policy off its reference."""
    shared = shared or all_roles(folders)
    ranks = ranks or Ranks()
    if moved:
        with torch.no_grad():
            for parameter in shared.parameters("policy"):
                parameter.mul_(2.0)
    head = None
    if config.has_critic:
        head = ValueHead.from_score_head(score_weight(folders.reward), ScoreNormalization(0.1, 2.0))
    engine = Altered(HFEngine(shared, pad_token_id=PAD, eos_token_id=EOS, batch_size=8), alter)
    engine.load_policy("policy")
    models, bad_steps = PPOModels(shared, head, PAD), BadStepCounter(config.max_bad_steps)

    def learner(parameters: list[nn.Parameter], rate: float) -> Learner:
        return make_learner(
            parameters,
            learning_rate=rate,
            adam_epsilon=config.adam_epsilon,
            max_grad_norm=config.max_grad_norm,
            ranks=ranks,
            deepspeed=deepspeed,
        )

    critic = None
    if head is not None:
        rate = config.critic_learning_rate or config.learning_rate
        critic = learner([*shared.parameters("critic"), *head.parameters()], rate)
    update = Update(
        config=config,
        models=models,
        policy=learner(shared.parameters("policy"), config.learning_rate),
        critic=critic,
        ranks=ranks,
        bad_steps=bad_steps,
        demonstrations=demonstrations,
        seed=seed,
    )
    return PPOTrainer(
        config=config,
        models=models,
        rollout_engine=engine,
        rewards=judged_by(reward, config),
        to_episode=to_episode,
        update=update,
        bad_steps=bad_steps,
        ranks=ranks,
        seed=seed,
        same_weights=same_weights,
        rollouts_dir=rollouts_dir,
    )


def learners(trainer: PPOTrainer) -> dict[str, Learner]:
    """The learners by role."""
    found = {"policy": trainer.update._policy, "critic": trainer.update._critic}
    return {role: learner for role, learner in found.items() if learner is not None}


def optimizer(trainer: PPOTrainer, role: str) -> torch.optim.Optimizer:
    """AdamW of a role."""
    learner = learners(trainer)[role]
    assert isinstance(learner, ReplicatedLearner)
    return learner.optimizer


def policy_parameters(trainer: PPOTrainer) -> list[nn.Parameter]:
    """The policy's adapter."""
    return trainer.models.shared_base.parameters("policy")


def trained(trainer: PPOTrainer) -> list[Tensor]:
    """Everything that the trainer moves: both adapters and the head."""
    base, head = trainer.models.shared_base, trainer.models.value_head
    critic = [] if head is None else [*base.parameters("critic"), *head.parameters()]
    return [*policy_parameters(trainer), *critic]


Call = tuple[tuple[Any, ...], dict[str, Any], Any]


def spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Call]:
    """Record the calls of a function with their results."""
    calls: list[Call] = []
    original = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append((args, kwargs, result))
        return result

    monkeypatch.setattr(owner, name, wrapper)
    return calls


def cut_short(rollout: Rollout) -> Rollout:
    """End a response at the first token that 4 divides, so that responses differ in length."""
    length = next((n + 1 for n, token in enumerate(rollout.response_ids) if token % 4 == 0), len(rollout.response_ids))
    return replace(rollout, response_ids=rollout.response_ids[:length], logprobs=rollout.logprobs[:length])


def made_up_experience(trainer: PPOTrainer, lengths: Sequence[int], *, seed: int = 71) -> Experience:
    """Experience of random responses of these lengths to the first prompts, without an engine."""
    responses = random_rows(lengths, seed=seed)
    rollouts = [
        Rollout(tuple(prompt), tuple(response), (-1.0,) * len(response), True)
        for prompt, response in zip(PROMPTS, responses, strict=False)
    ]
    config = trainer.config.model_copy(update={"microbatch_size": 8})
    return collect_experience(rollouts, trainer.models, config)[0]


def gradients_at_steps(monkeypatch: pytest.MonkeyPatch, trainer: PPOTrainer, role: str) -> list[list[Tensor]]:
    """Copies of a role's gradients, one list for each optimizer step, which is then not made."""
    adam = optimizer(trainer, role)
    found: list[list[Tensor]] = []

    def record() -> None:
        found.append([weight.grad.clone() for group in adam.param_groups for weight in group["params"]])

    monkeypatch.setattr(adam, "step", record)
    return found


def move(parameters: Sequence[Tensor], *, scale: float, seed: int = 3) -> None:
    """Add normal noise to parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def zero_value_head(trainer: PPOTrainer) -> None:
    """Let the critic say 0."""
    assert trainer.models.value_head is not None
    with torch.no_grad():
        for parameter in trainer.models.value_head.parameters():
            parameter.zero_()
