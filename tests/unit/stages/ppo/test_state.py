"""A trainer that was saved, made anew and loaded goes on as if nothing had happened, bit for bit."""

import math
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import ModelError
from rewards.contract import Episode
from stages.models.tuning import adapter_state
from stages.ppo.config import PPOConfig
from stages.ppo.state import load_state, save_state
from stages.ppo.trainer import PPOTrainer
from tests.unit.stages.parts import same, snapshot
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, even_share, learners, optimizer, ppo_config, trained

GROUPED = [PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[2], PROMPTS[3], PROMPTS[3], PROMPTS[4], PROMPTS[4]]
CONFIGS = {
    "gae": ppo_config(
        steps=4, responses_per_prompt=2, normalize_scores=True, kl_coef=0.3,
        kl_controller={"type": "adaptive", "target": 0.01, "horizon": 100.0},
        rewards=[
            {"type": "length", "name": "running", "normalize": "running"},
            {"type": "length", "name": "bound", "threshold": {"at_least": 0.9, "multiplier_init": 0.2}},
        ],
    ),
    "rloo": ppo_config(steps=4, advantage_estimator="rloo", responses_per_prompt=2, kl_placement="loss"),
}  # fmt: skip


def _state(trainer: PPOTrainer) -> list[torch.Tensor]:
    """All that a step moves."""
    moments = [
        moment.clone()
        for role in learners(trainer)
        for state in optimizer(trainer, role).state_dict()["state"].values()
        for moment in state.values()
    ]
    scores, rewards = trainer.score_shaper, trainer.rewards.state.to_json()
    figures = [
        trainer.kl_controller.value, scores.num_scores, scores.mean, scores.sum_of_squares, trainer.num_steps,
        trainer.bad_steps.count, trainer.kl_watch.num_negative, *rewards["multipliers"].values(),
        *(figure for moments in rewards["moments"].values() for figure in moments),
    ]  # fmt: skip
    return [*snapshot(trained(trainer)), *moments, torch.tensor(figures, dtype=torch.float64)]


def _metrics(row: dict[str, float]) -> dict[str, float]:
    return {
        name: value
        for name, value in row.items()
        if not name.startswith(("time/", "memory/")) and name != "rollout/tokens_per_second"
    }


class BrokenOnce:
    """The planted reward with one NaN at the first call, so that the counter of bad steps is not 0."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        self.calls += 1
        return [math.nan] * len(episodes) if self.calls == 1 else even_share(episodes)


def _saved(make: MakeTrainer, config: PPOConfig, folder: Path) -> PPOTrainer:
    """A trainer after a bad step and a good one, saved."""
    trainer = make(config, reward=BrokenOnce())
    trainer.step(GROUPED)
    trainer.step(GROUPED)
    trainer.kl_watch.num_negative = 2
    save_state(folder, trainer, learners(trainer), base_spec="tiny")
    return trainer


@pytest.mark.parametrize("name", CONFIGS)
def test_checklist_50_a_loaded_trainer_goes_on_bit_for_bit(make: MakeTrainer, tmp_path: Path, name: str) -> None:
    uninterrupted = _saved(make, CONFIGS[name], tmp_path / "state")
    loaded = make(CONFIGS[name])
    assert not same(_state(uninterrupted), _state(loaded))
    load_state(tmp_path / "state", loaded, learners(loaded))
    assert same(_state(uninterrupted), _state(loaded))
    for _ in range(2):
        assert _metrics(uninterrupted.step(GROUPED)) == _metrics(loaded.step(GROUPED))
        assert same(_state(uninterrupted), _state(loaded))
    assert loaded.num_steps == 4 and loaded.bad_steps.count == 1
    if name == "gae":
        assert loaded.rewards.state.moments["running"].count == 24 and loaded.rewards.state.multipliers["bound"] != 0.2
        assert loaded.kl_controller.value != 0.3 and loaded.score_shaper.num_scores == 24


def test_checklist_50_every_part_of_the_state_matters(make: MakeTrainer, tmp_path: Path) -> None:
    """The control of the test above: without any one item, loading gives another trainer."""
    folder = tmp_path / "state"
    uninterrupted = _saved(make, CONFIGS["gae"], folder)
    fresh = make(CONFIGS["gae"])
    start = tmp_path / "start"
    save_state(start, fresh, learners(fresh), base_spec="tiny")
    state, at_start = (torch.load(path / "trainer.pt", weights_only=True) for path in (folder, start))
    assert state.keys() == {
        "value_head", "kl_coef", "scores", "rewards", "num_steps", "num_bad_steps", "num_negative_kl",
    }  # fmt: skip
    for item in state:
        torch.save(state | {item: at_start[item]}, folder / "trainer.pt")
        load_state(folder, fresh, learners(fresh))
        assert not same(_state(uninterrupted), _state(fresh)), item
    torch.save(state, folder / "trainer.pt")
    load_state(folder, fresh, learners(fresh))
    assert same(_state(uninterrupted), _state(fresh))


def test_the_folder_holds_adapters_as_peft_has_them_and_is_written_over(make: MakeTrainer, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    trainer = _saved(make, CONFIGS["gae"], folder)
    trainer.step(GROUPED)
    save_state(folder, trainer, learners(trainer), base_spec="tiny")
    for role in ("policy", "critic"):
        saved = list(adapter_state(folder / role).values())
        own = trainer.models.shared_base.parameters(role)
        assert len(saved) == len(own)
        assert all(any(torch.equal(one, other) for other in own) for one in saved)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["critic", "engine-0.pt", "learners-0.pt", "policy", "trainer.pt"]


def test_a_folder_without_a_whole_state_is_refused(make: MakeTrainer, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    _saved(make, CONFIGS["rloo"], folder)
    (folder / "trainer.pt").unlink()
    trainer = make(CONFIGS["rloo"])
    with pytest.raises(FileNotFoundError):
        load_state(folder, trainer, learners(trainer))
    with pytest.raises((FileNotFoundError, ModelError)):
        load_state(tmp_path / "nothing", trainer, learners(trainer))


class _Payload:
    """What a hostile file would hold."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["trainer.pt", "learners-0.pt", "engine-0.pt"])
def test_nothing_but_tensors_and_numbers_is_unpickled(make: MakeTrainer, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "state"
    _saved(make, CONFIGS["rloo"], folder)
    torch.save({"policy": _Payload(tmp_path / "executed")}, folder / name)
    trainer = make(CONFIGS["rloo"])
    with pytest.raises(pickle.UnpicklingError):
        load_state(folder, trainer, learners(trainer))
    assert not (tmp_path / "executed").exists()
