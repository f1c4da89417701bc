"""Work in several processes: the same results in the same order, and a clear end where one fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.errors import StageError
from data.parallel import map_chunks
from tests.processes import has_ended

TEXTS = [f"text {number}" for number in range(12_345)]


def lengths(texts: Sequence[str]) -> list[int]:
    """Length of each text; prints, as libraries do."""
    print("not an answer")
    return [len(text) for text in texts]


def raises(texts: Sequence[str]) -> int:
    """Fails."""
    return int(texts[0])


def dies(texts: Sequence[str]) -> None:
    """Ends its process, as the system does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


class Offset:
    """A function with a value of its own."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self, texts: Sequence[str]) -> int:
        return len(texts) + self.value


def test_results_are_those_of_one_process_in_order() -> None:
    alone = list(map_chunks(lengths, TEXTS))
    apart = list(map_chunks(lengths, TEXTS, fewest=1))
    assert apart == alone and [len(chunk) for chunk in alone] == [5000, 5000, 2345]
    assert list(map_chunks(Offset(1), TEXTS, fewest=1)) == [5001, 5001, 2346]
    assert list(map_chunks(lengths, [], fewest=0)) == []


def test_a_function_that_raises_and_a_process_that_dies_are_told() -> None:
    with pytest.raises(StageError, match="looking through the texts failed: ValueError: invalid literal"):
        list(map_chunks(raises, TEXTS, fewest=1))
    with pytest.raises(StageError, match="a process that looks through the texts died"):
        list(map_chunks(dies, TEXTS, fewest=1))


def test_processes_end_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    # The script has no guard on purpose: it must not be run again by the processes.
    script = tmp_path / "caller.py"
    script.write_text(
        "import os, sys, pathlib\n"
        "from data.parallel import map_chunks\n"
        "from tests.unit.data.test_parallel import Sleeper\n"
        "list(map_chunks(Sleeper(sys.argv[1]), ['x'] * 20000))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    caller = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while len(pids := list(tmp_path.glob("*.pid"))) < 2:
        assert time.monotonic() < deadline and caller.poll() is None
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    while not all(has_ended(int(path.stem)) for path in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Sleeper:
    """Leaves the number of its process, then takes a while."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, texts: Sequence[str]) -> int:
        (Path(self.folder) / f"{os.getpid()}.pid").touch()
        time.sleep(2)
        return len(texts)
