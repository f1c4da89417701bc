"""PPO on a reward model of several members: what each said is kept, and combined as asked."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from rewards.stored import StoredStep, read_steps, recomputed
from stages.metrics import read_metrics
from stages.ppo.config import PPOConfig
from stages.ppo.trainer import PPOTrainer
from tests.unit.stages.parts import Executed, run_quietly
from tests.unit.stages.ppo.trainers import spy

REWARDS: list[dict[str, Any]] = [{"type": "learned", "weight": 0.0}, {"type": "ensemble"}]


def _trained(ppo_run: Executed, ensemble: Executed, folder: Path, rewards: list[dict[str, Any]]) -> StoredStep:
    settings = ppo_run.spec.config | {"rewards": rewards, "steps": 1}
    spec = replace(
        ppo_run.spec,
        config=PPOConfig.model_validate(settings).model_dump(mode="json"),
        inputs={**ppo_run.spec.inputs, "reward_model": ensemble.artifact},
        stage_dir=folder / "night" / "ppo",
        store_dir=folder / "store",
    )
    run_quietly(spec)
    (stored,) = read_steps(spec.stage_dir / "rollouts")
    return stored


@pytest.mark.parametrize("kind", ["adapters", "heads"])
def test_the_members_of_the_own_reward_model(
    ppo_run: Executed, ensembles: dict[str, Executed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calls = spy(monkeypatch, PPOTrainer, "step")
    stored = _trained(ppo_run, ensembles[kind], tmp_path, REWARDS)
    roles = set(calls[0][0][0].models.shared_base.peft_model.peft_config)
    members = {"reward-member-2", "reward-member-3"} if kind == "adapters" else set()
    assert roles == {"policy", "reference", "critic", "reward"} | members
    columns = [f"ensemble/own.{number}" for number in (1, 2, 3)]
    assert list(stored.parts) == ["learned", *columns]
    by_episode = list(zip(*(stored.parts[name] for name in columns), strict=True))
    assert stored.parts["learned"] == [fmean(each) for each in by_episode]
    assert stored.totals == pytest.approx([fmean(each) - pstdev(each) for each in by_episode], abs=1e-12)
    assert max(map(pstdev, by_episode)) > 1e-3
    (row,) = read_metrics(tmp_path / "night" / "ppo" / "metrics.jsonl")
    assert row["reward/ensemble/disagreement"] == pytest.approx(fmean(map(pstdev, by_episode)))
    ((_, again),) = recomputed(tmp_path / "night" / "ppo" / "rollouts")
    assert again.totals == stored.totals


def test_the_members_of_a_named_reward_model(ppo_run: Executed, ensembles: dict[str, Executed], tmp_path: Path) -> None:
    """Beside the own one of a single score; the same ensemble as in the test above, by its folder."""
    named = str(ensembles["adapters"].artifact.path)
    rewards = [{"type": "ensemble", "members": [named], "combine": "min"}]
    alone = Executed(ppo_run.spec, {}, ppo_run.spec.inputs["reward_model"])
    stored = _trained(ppo_run, alone, tmp_path, rewards)
    assert list(stored.parts) == ["ensemble/own", "ensemble/1.1", "ensemble/1.2", "ensemble/1.3"]
    assert stored.parts["ensemble/own"] == pytest.approx(stored.parts["ensemble/1.1"]), "the same training"
    assert stored.totals == [min(each) for each in zip(*stored.parts.values(), strict=True)]
