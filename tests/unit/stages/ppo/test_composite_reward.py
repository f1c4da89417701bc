"""A real PPO stage on five components: curves, rollouts, totals made again, and the same result when it is killed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from data.schema import PromptRecord, write_records
from rewards.composite import combine
from rewards.stored import read_steps, recomputed
from stages.artifacts import combine_digests, file_digests
from stages.contract import CheckpointSchedule, DatasetArtifact
from stages.metrics import read_metrics
from stages.ppo.config import PPOConfig
from stages.ppo.trainer import PPOTrainer
from stages.run import StageSpec
from tests.unit.stages.parts import Executed, executed, run_quietly
from tests.unit.stages.ppo.trainers import PROMPTS, MakeTrainer, ppo_config, spy
from tests.unit.stages.test_resume import killed_after, rows, scramble

REWARDS: list[dict[str, Any]] = [
    {"type": "learned"},
    {"type": "length", "weight": 0.2, "normalize": "running", "clip": [-1.0, 1.0]},
    {"type": "repetition", "ngram": 2},
    {"type": "sentiment", "weight": 0.5, "text": "response"},
    {
        "type": "character_share", "name": "vowels", "characters": "aeiou",
        "threshold": {"at_least": 0.5, "multiplier_init": 0.3, "multiplier_learning_rate": 1.0},
    },
]  # fmt: skip


def spec_of(run: Executed, folder: Path, rewards: Any, **settings: Any) -> StageSpec:
    config = PPOConfig.model_validate(run.spec.config | {"rewards": rewards} | settings).model_dump(mode="json")
    return replace(run.spec, config=config, stage_dir=folder / "night" / "ppo", store_dir=folder / "store")


@pytest.fixture(scope="module")
def judged(ppo_run: Executed, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """Three steps by five components."""
    return executed(spec_of(ppo_run, tmp_path_factory.mktemp("judged"), REWARDS))


def folder_of(run: Executed) -> Path:
    return run.spec.stage_dir / "rollouts"


def test_each_component_has_its_curves(judged: Executed) -> None:
    found = read_metrics(judged.spec.stage_dir / "metrics.jsonl")
    names = ("learned", "length", "repetition", "sentiment", "vowels")
    for row, (stored, combined) in zip(found, recomputed(folder_of(judged)), strict=True):
        for name in names:
            raw = stored.parts[name]
            assert row[f"reward/{name}/raw_mean"] == pytest.approx(sum(raw) / len(raw))
        assert sum(row[f"reward/{name}/weighted_mean"] for name in names) == pytest.approx(row["objective/scores"])
        assert combined.metrics.items() <= row.items()
        assert "reward/length/clipped_fraction" in row and "reward/learned/clipped_fraction" not in row
    multipliers = [row["constraint/vowels/multiplier"] for row in found]
    violations = [row["constraint/vowels/violation"] for row in found]
    assert multipliers[0] == 0.3
    for before, after, violation in zip(multipliers, multipliers[1:], violations, strict=False):
        assert after == pytest.approx(min(max(before + violation, 0.0), 10.0)) != before
    assert judged.manifest["notes"]["critic_initialisation"] == "SFT adapter, with a value head of zeros"
    assert judged.manifest["notes"]["rollouts"] == "night/ppo/rollouts"
    assert not [name for name in judged.manifest["files"] if "rollouts" in name], "the artifact is the policy alone"


def test_the_totals_are_made_again_bit_for_bit_from_the_raw_parts(judged: Executed) -> None:
    steps = list(read_steps(folder_of(judged)))
    assert [stored.step for stored in steps] == [1, 2, 3] and all(len(stored.episodes) == 8 for stored in steps)
    state = None
    for stored in steps:
        found = combine(stored.parts, PPOConfig.model_validate(judged.spec.config).reward_components, state)
        assert found.totals == stored.totals and len(set(stored.totals)) > 4
        state = found.state
    vowels = [
        sum(c in "aeiou" for c in each.response_text) / max(len(each.response_text), 1) for each in steps[1].episodes
    ]
    assert steps[1].parts["vowels"] == vowels
    assert steps[1].parts["length"] == [len(each.response_ids) for each in steps[1].episodes]


def test_killed_it_goes_on_to_the_same_policy_curves_and_rollouts(
    judged: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running moments and a multiplier are of all steps before; rollouts after the checkpoint are written again."""
    spec = replace(
        judged.spec,
        stage_dir=tmp_path / "night" / "ppo",
        store_dir=tmp_path / "store",
        checkpoints=CheckpointSchedule(every_steps=1),
    )
    killed_after(spec, 2, monkeypatch)
    stale = spec.stage_dir / "rollouts" / "step-00000002.parquet"
    stale.write_bytes(b"of the step that the checkpoint has not")
    scramble()
    assert run_quietly(spec)["artifact"]["digest"] == judged.artifact.digest
    assert rows(spec) == rows(judged.spec)
    assert file_digests(spec.stage_dir / "rollouts") == file_digests(folder_of(judged))


def test_a_stage_that_starts_anew_keeps_no_rollouts_of_another_one(ppo_run: Executed, tmp_path: Path) -> None:
    spec = spec_of(ppo_run, tmp_path, None, steps=1)
    folder = spec.stage_dir / "rollouts"
    folder.mkdir(parents=True)
    (folder / "step-00000007.parquet").write_bytes(b"old")
    run_quietly(spec)
    assert [path.name for path in folder.iterdir()] == ["step-00000001.parquet"]


def test_rollouts_can_be_left_out(ppo_run: Executed, tmp_path: Path) -> None:
    spec = spec_of(ppo_run, tmp_path, None, steps=1, keep_rollouts=False)
    assert "rollouts" not in run_quietly(spec)["notes"] and not (spec.stage_dir / "rollouts").exists()


def test_a_reward_model_is_loaded_once_and_only_where_it_judges(
    ppo_run: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy(monkeypatch, PPOTrainer, "step")
    other = str(ppo_run.spec.inputs["reward_model"].path)
    rewards = [
        {"type": "learned", "weight": 0.5}, {"type": "learned", "name": "same", "path": other, "weight": 0.5},
        {"type": "ensemble", "members": [other], "weight": 0.0},
    ]  # fmt: skip
    run_quietly(spec_of(ppo_run, tmp_path / "twice", rewards, steps=1))
    run_quietly(spec_of(ppo_run, tmp_path / "never", [{"type": "length"}], steps=1))
    roles = [set(args[0].models.shared_base.peft_model.peft_config) for args, _, _ in calls]
    assert roles == [{"policy", "reference", "critic", "reward"}, {"policy", "reference", "critic"}]
    (stored,) = read_steps(tmp_path / "twice" / "night" / "ppo" / "rollouts")
    assert stored.parts["learned"] == stored.parts["same"] == stored.parts["ensemble/own"] == stored.totals


def test_references_reach_the_reward_and_have_to_be_there(ppo_run: Executed, tmp_path: Path) -> None:
    exact = [{"type": "exact_match", "weight": 0.0}, {"type": "learned"}]
    with pytest.raises(
        DataError, match=r"100 of 100 prompts to train on have no `reference`; ppo\.rewards\[exact_matc"
    ):
        run_quietly(spec_of(ppo_run, tmp_path / "without", exact, steps=1))
    data = tmp_path / "data"
    prompts = [PromptRecord(prompt=f"{number} and {number}:", reference=str(2 * number)) for number in range(20)]
    write_records(data / "prompts" / "train.jsonl", prompts)
    spec = spec_of(ppo_run, tmp_path / "with", exact, steps=1)
    dataset = DatasetArtifact(data, combine_digests(file_digests(data)))
    run_quietly(replace(spec, inputs={**spec.inputs, "dataset": dataset}))
    (stored,) = read_steps(spec.stage_dir / "rollouts")
    assert all(each.reference == str(2 * int(str(each.prompt).split()[0])) for each in stored.episodes)


def test_a_batch_that_is_not_finite_is_kept_to_be_looked_at(make: MakeTrainer, tmp_path: Path) -> None:
    trainer = make(ppo_config(), reward=lambda e: [float("nan"), *[1.0] * (len(e) - 1)], rollouts_dir=tmp_path)
    before = trainer.rewards.state
    assert trainer.step(PROMPTS)["train/bad_steps"] == 1.0
    (stored,) = read_steps(tmp_path)
    assert stored.totals[0] != stored.totals[0] and stored.totals[1:] == [1.0] * 7 and trainer.rewards.state == before
