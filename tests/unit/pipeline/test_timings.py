"""Seconds by part."""

import pytest

from pipeline import timings
from pipeline.timings import Timings


class Clock:
    """A clock that only goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timings.time, "perf_counter", clock)
    monkeypatch.setattr(timings.time, "time", clock)
    return clock


def test_a_part_that_is_measured_twice_adds_up(clock: Clock) -> None:
    found = Timings()
    for seconds in (2.0, 0.5):
        with found.measure("hashing"):
            clock.now += seconds
        clock.now += 10.0
    with found.measure("report"):
        clock.now += 0.25
    assert found.to_json() == {"began": 1000.0, "ended": 1022.75, "seconds": {"hashing": 2.5, "report": 0.25}}


def test_a_part_counts_when_it_fails(clock: Clock) -> None:
    found = Timings()
    with pytest.raises(ValueError, match="gone"), found.measure("stages"):
        clock.now += 3.0
        raise ValueError("gone")
    assert found.to_json()["seconds"] == {"stages": 3.0}
