"""Rollouts as Parquet: what comes back, bytes that repeat, totals made again, files that are none."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from data.errors import DataError
from data.schema import Message
from rewards.composite import RewardState, combine, initial_state
from rewards.composite_config import RewardConfig
from rewards.contract import Episode
from rewards.stored import StoredStep, cut_steps, read_step, read_steps, recomputed, step_path, write_step

RULES: list[RewardConfig] = TypeAdapter(list[RewardConfig]).validate_python(
    [
        {"type": "length", "weight": 0.3, "normalize": "running"},
        {"type": "ensemble", "members": ["p"], "clip": [-0.4, 2.0]},
        {"type": "repetition", "threshold": {"at_least": -0.1, "multiplier_init": 0.7}},
    ]
)
TURNS = (Message(role="user", content="\u4f60\u597d"),)
EPISODES = [
    Episode("Hi", "\u4f60\u597d \U0001f600\n", (1, 2), (3,), TURNS, True, "42"),
    Episode("Ho", "", (2,), (4, 5, 6), "Ho", False),
]
PARTS = [
    {"length": [1.0, 3.0], "ensemble/own": [0.1, -1 / 3], "ensemble/1": [0.7, 2.5], "repetition": [0.0, -0.6]},
    {"length": [2.0, 9.0], "ensemble/own": [0.2, 1e-17], "ensemble/1": [-0.7, 0.1], "repetition": [-0.3, -0.9]},
    {"length": [2.0, 5.0], "ensemble/own": [5.2, 1.0], "ensemble/1": [-0.2, 0.1], "repetition": [0.0, 0.0]},
]


def steps() -> list[StoredStep]:
    """Three steps as PPO makes them."""
    state, made = initial_state(RULES), []
    for number, parts in enumerate(PARTS, start=1):
        found = combine(parts, RULES, state)
        made.append(StoredStep(number, EPISODES, RULES, state, parts, found.totals))
        state = found.state
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for stored in steps():
        write_step(tmp_path / "rollouts", stored)
    return tmp_path / "rollouts"


def test_everything_comes_back(folder: Path) -> None:
    assert list(read_steps(folder)) == steps()
    assert sorted(path.name for path in folder.iterdir()) == [f"step-0000000{number}.parquet" for number in (1, 2, 3)]


def test_the_columns_are_those_of_the_documentation(folder: Path) -> None:
    table = pq.read_table(step_path(folder, 1))
    assert table.column_names == [
        "prompt_text", "response_text", "finished", "reference", "prompt", "prompt_ids", "response_ids",
        "raw/length", "raw/ensemble/own", "raw/ensemble/1", "raw/repetition", "total",
    ]  # fmt: skip
    documented = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in documented for name in [*table.column_names[:7], "total", "raw/<name>"])


def test_the_same_rows_are_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for stored in steps():
        again = write_step(tmp_path / "again", stored)
        assert again.read_bytes() == (folder / again.name).read_bytes()


def test_totals_are_made_again_bit_for_bit(folder: Path) -> None:
    assert len({total for stored in steps() for total in stored.totals}) == 6
    for stored, combined in recomputed(folder):
        assert combined.totals == stored.totals
    for stored, combined in recomputed(folder, RULES):  # from the first step on, by the state that it makes itself
        assert combined.totals == stored.totals
    (step_path(folder, 1)).unlink()
    alone = read_step(step_path(folder, 3))
    assert combine(alone.parts, alone.components, alone.state).totals == alone.totals


def test_other_weights_and_members_of_the_same_raw_scores(folder: Path) -> None:
    ensemble: list[RewardConfig] = TypeAdapter(list[RewardConfig]).validate_python(
        [{"type": "ensemble", "members": ["p"], "combine": "min", "weight": 2}]
    )
    assert [combined.totals for _, combined in recomputed(folder, ensemble)] == [
        [0.2, -2 / 3], [-1.4, 2e-17], [-0.4, 0.2],
    ]  # fmt: skip


def test_what_did_not_judge_cannot_be_weighed(folder: Path) -> None:
    other: list[RewardConfig] = TypeAdapter(list[RewardConfig]).validate_python([{"type": "length", "name": "brevity"}])
    with pytest.raises(DataError, match=r"step 1 has no raw scores of `brevity`, but of `length`, `ensemble/own`"):
        list(recomputed(folder, other))


def test_files_after_a_checkpoint_and_half_written_ones_go(folder: Path) -> None:
    (folder / ".step-00000003.parquet").write_bytes(b"PAR1")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    cut_steps(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "notes.txt", "step-00000001.parquet", "step-00000002.parquet",
    ]  # fmt: skip
    cut_steps(folder, 0)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    cut_steps(folder / "nowhere", 0)


def test_a_write_that_is_cut_off_leaves_the_file_before_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_step(folder, steps()[0])
    assert list(read_steps(folder)) == steps()


@pytest.mark.parametrize("damage", ["cut", "text", "foreign", "column"])
def test_a_file_that_is_none_is_named(folder: Path, damage: str) -> None:
    path = step_path(folder, 2)
    table = pq.read_table(path)
    changes: dict[str, Any] = {
        "cut": lambda: path.write_bytes(path.read_bytes()[:-50]),
        "text": lambda: path.write_text("hello", encoding="utf-8"),
        "foreign": lambda: pq.write_table(table.replace_schema_metadata({}), path),
        "column": lambda: pq.write_table(table.drop_columns(["raw/length"]), path),
    }
    changes[damage]()
    with pytest.raises(DataError, match=r"step-00000002\.parquet: no rollouts of a PPO step \(.*let the run write it"):
        list(read_steps(folder))


def test_a_state_of_numbers_comes_back(folder: Path) -> None:
    stored = read_step(step_path(folder, 2))
    assert stored.state != initial_state(RULES) and isinstance(stored.state, RewardState)
