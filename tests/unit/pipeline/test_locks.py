"""Locks between processes: one holder, who waits is told whom for, a killed holder's lock is taken over."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from pipeline import locks
from pipeline.locks import is_locked, locked, release, try_lock


def _hold(path: Path, ready: Any) -> None:
    held = try_lock(path, "run first (process 7)")
    assert held is not None
    ready.set()
    multiprocessing.get_context("spawn").Event().wait(60)


def held_elsewhere(path: Path) -> Any:
    """Another process that holds the lock, and lives."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(path, ready))
    process.start()
    assert ready.wait(60)
    return process


def test_one_holder_at_a_time_and_no_file_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    assert not is_locked(path)
    first = try_lock(path, "me")
    assert first is not None and path.read_text() == "me"
    assert is_locked(path) and try_lock(path, "other") is None
    assert path.read_text() == "me", "who did not get it leaves the holder's name"
    release(first, path)
    assert not path.exists() and not is_locked(path)
    again = try_lock(path)
    assert again is not None
    release(again, path)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    process = held_elsewhere(path)
    assert is_locked(path) and try_lock(path) is None
    process.kill()
    process.join()
    assert path.exists() and not is_locked(path)
    taken = try_lock(path, "heir")
    assert taken is not None and path.read_text() == "heir"
    release(taken, path)
    assert not path.exists()


def test_who_waits_is_told_once_whom_for_and_goes_on_when_the_holder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.lock"
    process = held_elsewhere(path)
    told: list[str] = []
    looks = [0]

    def look(seconds: float) -> None:
        looks[0] += 1
        if looks[0] == 3:
            process.kill()
            process.join()

    monkeypatch.setattr(locks.time, "sleep", look)
    with locked(path, "second", told.append):
        assert path.read_text() == "second"
    assert told == ["run first (process 7)"] and looks[0] >= 3
    assert not path.exists()


def test_waiting_can_be_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = held_elsewhere(tmp_path / "x.lock")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(locks.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "x.lock", "second", lambda holder: None):
        raise AssertionError("it was not waited for")
    assert is_locked(tmp_path / "x.lock"), "the holder keeps it"
    process.kill()
    process.join()


def test_a_file_that_its_holder_has_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened before the holder let go, locked after it: that file has no name any more."""
    path = tmp_path / "x.lock"
    first = try_lock(path)
    assert first is not None
    real = locks._flock
    seen = []

    def slow(file: Any, kind: int) -> bool:
        if not seen:
            seen.append(file)
            release(first, path)  # between the other's open and its flock
        return real(file, kind)

    monkeypatch.setattr(locks, "_flock", slow)
    second = try_lock(path, "second")
    assert second is not None and second is not seen[0]
    assert path.read_text() == "second"
    release(second, path)


def test_a_failure_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError), locked(tmp_path / "x.lock", "me", lambda holder: None):
        raise ValueError
    assert not list(tmp_path.iterdir())
