"""Checkpoints on disk: whole or not there, the newest intact one of the same fingerprint, the oldest ones dropped."""

import json
import os
from pathlib import Path

import pytest

from stages.checkpoint import Checkpoint, Checkpoints
from stages.contract import CheckpointSchedule
from stages.ranks import Ranks

ALONE = Ranks()


def checkpoints(folder: Path, fingerprint: str = "f", **schedule: float) -> Checkpoints:
    return Checkpoints(folder, fingerprint, CheckpointSchedule(**schedule))  # type: ignore[arg-type]


def text_of(step: int) -> str:
    return f"state after {step}"


def write(folder: Path, *steps: int, fingerprint: str = "f", keep: int = 2) -> None:
    for step in steps:

        def save(path: Path, step: int = step) -> None:
            (path / "nested").mkdir()
            (path / "nested" / "state.txt").write_text(text_of(step), encoding="utf-8")

        checkpoints(folder, fingerprint, keep=keep).write(step, save, ALONE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def read(found: Checkpoint | None) -> tuple[int, str] | None:
    return None if found is None else (found.step, (found.path / "nested" / "state.txt").read_text(encoding="utf-8"))


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoints(tmp_path).latest() is None
    assert list(tmp_path.iterdir()) == []


def test_the_newest_is_read_and_the_oldest_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, 3, 9, 10)
    assert names(tmp_path) == ["step-00000009", "step-00000010"]
    assert read(checkpoints(tmp_path).latest()) == (10, text_of(10))


def test_another_fingerprint_or_format_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 3)
    assert checkpoints(tmp_path, "other").latest() is None
    assert "other settings, inputs or code" in caplog.text
    description = tmp_path / "checkpoints" / "step-00000003" / "checkpoint.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"format": 2}), encoding="utf-8")
    assert checkpoints(tmp_path).latest() is None
    assert "format is not 1" in caplog.text


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "add", "garble", "undescribed"])
def test_a_damaged_one_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    write(tmp_path, 3, 4)
    folder = tmp_path / "checkpoints" / "step-00000004"
    state, description = folder / "nested" / "state.txt", folder / "checkpoint.json"
    match damage:
        case "flip":
            state.write_text(text_of(5), encoding="utf-8")
        case "cut":
            state.write_text(text_of(4)[:-1], encoding="utf-8")
        case "lose":
            state.unlink()
        case "add":
            (folder / "more.txt").touch()
        case "garble":
            description.write_text('{"format": 1', encoding="utf-8")
        case _:
            description.unlink()
    assert read(checkpoints(tmp_path).latest()) == (3, text_of(3))
    assert "step-00000004 is not used" in caplog.text
    write(tmp_path, 4)
    assert read(checkpoints(tmp_path).latest()) == (4, text_of(4))


@pytest.mark.parametrize("moment", ["saving", "describing", "renaming"])
def test_a_writer_killed_at_any_moment_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write(tmp_path, 3)

    class Killed(BaseException):
        """Nothing may clean up after it, as after SIGKILL."""

    def die(*arguments: object) -> None:
        raise Killed

    def save(path: Path) -> None:
        (path / "half.txt").touch()
        if moment == "saving":
            die()

    with monkeypatch.context() as patched:
        if moment == "describing":
            patched.setattr("stages.checkpoint.write_json", die)
        if moment == "renaming":
            patched.setattr(os, "rename", die)
        with pytest.raises(Killed):
            checkpoints(tmp_path).write(4, save, ALONE)
    assert names(tmp_path) == [".writing-00000004", "step-00000003"]
    assert read(checkpoints(tmp_path).latest()) == (3, text_of(3))
    write(tmp_path, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_due_by_steps_and_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("stages.checkpoint.time.monotonic", lambda: clock[0])
    written = checkpoints(tmp_path, every_steps=4, every_minutes=2.0, keep=9)
    for step in range(1, 10):
        clock[0] += 45.0
        written.write_if_due(step, lambda path: (path / "x").touch(), ALONE)
    # 3: 135 s. 4: a multiple. 7: 135 s after 4. 8: a multiple.
    assert names(tmp_path) == [f"step-{step:08d}" for step in (3, 4, 7, 8)]
    never = checkpoints(tmp_path / "other")
    never.write_if_due(1, lambda path: None, ALONE)
    assert not (tmp_path / "other").exists()


def test_all_are_removed_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, 3, 4)
    checkpoints(tmp_path).remove_all()
    assert list(tmp_path.iterdir()) == []
    checkpoints(tmp_path).remove_all()


def test_the_time_of_writes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 12.5, 20.0])  # made; written from 10 to 12.5; ended at 20 what began at 13
    monkeypatch.setattr("stages.checkpoint.time.monotonic", lambda: next(clock))
    timings: dict[str, float] = {}
    checkpoints = Checkpoints(tmp_path, "f", CheckpointSchedule(), timings=timings)
    checkpoints.write(1, lambda folder: None, Ranks())
    assert timings == {"checkpoints": 2.5}
    checkpoints.write(2, lambda folder: None, Ranks(), started=13.0)
    assert timings == {"checkpoints": 9.5}
