"""What a stopped PPO needs to go on: adapters, head, optimizers, controllers, counters.

    <folder>/policy, <folder>/critic     adapters as PEFT saves them
    <folder>/trainer.pt                  value head, controllers, counters
    <folder>/learners-<rank>.pt          optimizer state of each rank
    <folder>/engine-<rank>.pt            number of the adapter in each rank's engine, and what its proof compares with
    <folder>/progress.json               what the stage reports at its end; in checkpoints only

Read back by `torch.load(weights_only=True)`: nothing else is unpickled.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from rewards.composite import RewardState
from stages.artifacts import write_json
from stages.learner import Learner
from stages.models.tuning import load_adapter_weights, save_adapter
from stages.ppo.trainer import PPOTrainer

_PROGRESS = "progress.json"


@dataclass
class Progress:
    """What the stage tells of its steps at the end.

    Attributes:
        metrics: The last finite value of each metric.
        num_updates: Optimizer steps that were applied.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    num_updates: float = 0.0

    def see(self, found: Mapping[str, float]) -> None:
        """Take in the metrics of a step."""
        self.metrics |= {name: value for name, value in found.items() if math.isfinite(value)}
        self.num_updates += found.get("policy/updates", 0.0)

    def save(self, folder: Path) -> None:
        """Write it beside the trainer's state."""
        write_json(folder / _PROGRESS, {"metrics": self.metrics, "num_updates": self.num_updates})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`."""
        return cls(**json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))


def save_state(folder: Path, trainer: PPOTrainer, learners: dict[str, Learner], *, base_spec: str) -> None:
    """Write the state as it is between two steps.

    Args:
        folder: Where to write; made if need be.
        trainer: Its controllers and counters, and the models.
        learners: By the role that they train.
        base_spec: `model.base` of the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    states = {role: learner.state_dict() for role, learner in learners.items()}
    torch.save(states, folder / f"learners-{trainer.ranks.rank}.pt")
    torch.save(trainer.rollout_engine.state_dict(), folder / f"engine-{trainer.ranks.rank}.pt")
    if not trainer.ranks.is_main:
        return
    for role in learners:
        save_adapter(trainer.models.shared_base.peft_model, role, folder / role, base_spec=base_spec)
    torch.save(_trainer_state(trainer), folder / "trainer.pt")


def load_state(folder: Path, trainer: PPOTrainer, learners: dict[str, Learner]) -> None:
    """Put a saved state into a trainer that was made with the same settings.

    Raises:
        ModelError: An adapter does not fit.
        FileNotFoundError: The folder holds no whole state.
    """
    for role, learner in learners.items():
        load_adapter_weights(trainer.models.shared_base.peft_model, folder / role, role)
        states = torch.load(folder / f"learners-{trainer.ranks.rank}.pt", weights_only=True)
        learner.load_state_dict(states[role])
    trainer.rollout_engine.load_state_dict(torch.load(folder / f"engine-{trainer.ranks.rank}.pt", weights_only=True))
    _load_trainer_state(trainer, torch.load(folder / "trainer.pt", weights_only=True))


class StepStart:
    """The state at the start of a step, in memory: a step that fails half-way is taken back to it."""

    def __init__(self, trainer: PPOTrainer, learners: dict[str, Learner]) -> None:
        """Remember the state as it is now."""
        self._trainer, self._learners = trainer, learners
        self.remember()

    def remember(self) -> None:
        """Copy what a step changes into the memory of the CPU."""
        trainer, base = self._trainer, self._trainer.models.shared_base
        self._adapters = {role: _copied(list(base.parameters(role))) for role in self._learners}
        self._optimizers = {role: _copied(learner.state_dict()) for role, learner in self._learners.items()}
        self._state = _copied(_trainer_state(trainer))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the trainer back to what was remembered last."""
        base = self._trainer.models.shared_base
        for role, learner in self._learners.items():
            for parameter, before in zip(base.parameters(role), self._adapters[role], strict=True):
                parameter.copy_(before)
            learner.load_state_dict(self._optimizers[role])
        _load_trainer_state(self._trainer, self._state)


def _copied(value: Any) -> Any:
    """The same nest of containers with tensors of its own, on the CPU."""
    match value:
        case torch.Tensor():
            return value.detach().to("cpu", copy=True)
        case dict():
            return {key: _copied(inner) for key, inner in value.items()}
        case list():
            return [_copied(inner) for inner in value]
        case _:
            return value


def _trainer_state(trainer: PPOTrainer) -> dict[str, Any]:
    """What the trainer carries from step to step beside adapters and optimizers."""
    head, scores = trainer.models.value_head, trainer.score_shaper
    return {
        "value_head": {} if head is None else head.state_dict(),
        "kl_coef": trainer.kl_controller.value,
        "scores": {"count": scores.num_scores, "mean": scores.mean, "sum_of_squares": scores.sum_of_squares},
        "rewards": trainer.rewards.state.to_json(),
        "num_steps": trainer.num_steps,
        "num_bad_steps": trainer.bad_steps.count,
        "num_negative_kl": trainer.kl_watch.num_negative,
    }


def _load_trainer_state(trainer: PPOTrainer, state: dict[str, Any]) -> None:
    if trainer.models.value_head is not None:
        trainer.models.value_head.load_state_dict(state["value_head"])
    trainer.kl_controller.value = state["kl_coef"]
    scores = trainer.score_shaper
    scores.num_scores = state["scores"]["count"]
    scores.mean, scores.sum_of_squares = state["scores"]["mean"], state["scores"]["sum_of_squares"]
    trainer.rewards.state = RewardState.from_json(state["rewards"])
    trainer.num_steps = state["num_steps"]
    trainer.bad_steps.count = state["num_bad_steps"]
    trainer.kl_watch.num_negative = state["num_negative_kl"]
