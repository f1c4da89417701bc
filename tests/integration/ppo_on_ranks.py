"""What the tests of distributed PPO do on each rank: steps of a trainer whose learners are replicated or sharded."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stages.accelerator import make_learner
from stages.ppo import trainer as trainer_module
from stages.ppo.experience import Experience
from stages.ppo.passes import Microbatch
from stages.ppo.state import load_state, save_state
from stages.ppo.trainer import PPOTrainer
from stages.ranks import Ranks
from stages.rollouts.contract import Rollout
from tests.unit.stages.on_ranks import learning, weights
from tests.unit.stages.parts import Folders, random_rows
from tests.unit.stages.ppo.trainers import PROMPTS, build_trainer, learners, optimizer, ppo_config, trained

CONFIG: dict[str, Any] = {
    "steps": 4,
    "minibatch_size": 8,
    "num_ppo_epochs": 1,
    "learning_rate": 1e-3,
    "critic_learning_rate": 2e-3,
    "entropy_coef": 0.05,
    "ptx_coef": 0.3,
    "normalize_scores": True,
    "max_grad_norm": 1e9,
    "rewards": [
        {"type": "length", "name": "running", "normalize": "running"},
        {"type": "length", "name": "bound", "threshold": {"at_least": 0.9, "multiplier_init": 0.2}},
    ],
}
DEMONSTRATIONS = list(zip(random_rows([3] * 16, seed=81), random_rows([1, 9, 2, 5] * 4, seed=82), strict=True))
LONG = {tuple(prompt) for prompt in PROMPTS[4:]}
SEED = 6  # its first shuffle gives the first of two ranks three of the four long responses
Records = dict[str, Any]


def cut_half(rollout: Rollout) -> Rollout:
    """Leave one token of the responses to the first four prompts: those of the first rank of two."""
    length = len(rollout.response_ids) if rollout.prompt_ids in LONG else 1
    return replace(rollout, response_ids=rollout.response_ids[:length], logprobs=rollout.logprobs[:length])


def zero(stage: int) -> dict[str, Any]:
    """DeepSpeed's settings, as far as PPO reads them."""
    return {"zero_optimization": {"stage": stage}}


def steps(ranks: Ranks, folders: Folders, kept: Path, deepspeed: dict[str, Any] | None) -> Records:
    """Two steps, a third by the trainer itself and by one that was loaded, and what was seen on the way."""

    def build() -> PPOTrainer:
        parts = {"alter": cut_half, "demonstrations": DEMONSTRATIONS, "ranks": ranks, "deepspeed": deepspeed}
        return build_trainer(folders, ppo_config(**CONFIG), seed=SEED, moved=True, **parts)

    trainer, found = build(), Records()
    found["own"] = _recorded(trainer_module, "collect_experience", lambda found: _tensors(found[0]))
    found["gathered"] = _recorded(trainer_module, "gather_experience", _tensors)
    found["tokens"] = _recorded_tokens(trainer)
    if deepspeed is None:
        found["gradients"] = _recorded_gradients(trainer)
    found["advantages"] = []
    update = trainer.update

    def spy(experience: Experience, targets: Any, **others: Any) -> dict[str, float]:
        found["advantages"].append(targets.advantages.tolist())
        return update(experience, targets, **others)

    trainer.update = spy  # type: ignore[assignment]
    try:
        found["metrics"] = [trainer.step(PROMPTS) for _ in range(2)]
    finally:
        trainer_module.collect_experience, trainer_module.gather_experience = _ORIGINALS
    trainer.update = update
    found["rewards"] = trainer.rewards.state.to_json()
    found["seeds"] = [list(seeds) for seeds in trainer.rollout_engine.seeds]  # type: ignore[attr-defined]
    found["weights"] = weights(trained(trainer))
    save_state(kept, trainer, learners(trainer), base_spec="tiny")
    ranks.barrier()
    loaded = build()
    load_state(kept, loaded, learners(loaded))
    found["third"] = [each.step(PROMPTS)["policy/loss"] for each in (trainer, loaded)]
    found["after_third"] = [weights(trained(each)) for each in (trainer, loaded)]
    return found


def everything(ranks: Ranks, base: str, policy: str, reward: str, kept: str) -> Records:
    """All that has to be compared, in one group of processes."""
    folders = Folders(Path(base), Path(policy), Path(reward))
    found = {"replicated": steps(ranks, folders, Path(kept) / "replicated", None)}
    if ranks.size > 1:
        for stage in (1, 2):
            sharded = partial(make_learner, deepspeed=zero(stage))
            found[f"learner_zero{stage}"] = learning(ranks, sharded, unused_on_a_rank=False)
            found[f"zero{stage}"] = steps(ranks, folders, Path(kept) / f"zero{stage}", zero(stage))
        sharded = partial(make_learner, deepspeed=zero(3))  # no parameter is sharded: as stage 2
        found["learner_zero3"] = learning(ranks, sharded, unused_on_a_rank=False)
    return found


_ORIGINALS = (trainer_module.collect_experience, trainer_module.gather_experience)


def _recorded(owner: Any, name: str, write: Callable[[Any], Any]) -> list[Any]:
    records: list[Any] = []
    original = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        records.append(write(result))
        return result

    setattr(owner, name, wrapper)
    return records


def _tensors(experience: Experience) -> Records:
    tensors = {f.name: getattr(experience, f.name) for f in fields(experience) if f.name != "rollouts"}
    rollouts = [[one.prompt_ids, one.response_ids, one.logprobs, one.finished] for one in experience.rollouts]
    return {name: tensor.tolist() for name, tensor in tensors.items()} | {"rollouts": rollouts}


def _recorded_tokens(trainer: PPOTrainer) -> list[int]:
    """Response tokens of each microbatch of the policy."""
    records: list[int] = []
    original = trainer.update._policy_microbatch

    def wrapper(experience: Experience, targets: Any, microbatch: Microbatch, num_tokens: int) -> dict[str, float]:
        records.append(int(experience.response_mask[microbatch.rows].sum()))
        return original(experience, targets, microbatch, num_tokens)

    trainer.update._policy_microbatch = wrapper  # type: ignore[method-assign]
    return records


def _recorded_gradients(trainer: PPOTrainer) -> Records:
    """Summed gradients at each optimizer step, flat, by role."""
    records: Records = {}
    for role in ("policy", "critic"):
        adam, own = optimizer(trainer, role), records.setdefault(role, [])

        def wrapper(adam: Any = adam, own: list[Any] = own, original: Any = adam.step) -> None:
            held: Sequence[Any] = [weight for group in adam.param_groups for weight in group["params"]]
            own.append(torch.cat([weight.grad.flatten() for weight in held]).tolist())
            original()

        adam.step = wrapper
    return records
