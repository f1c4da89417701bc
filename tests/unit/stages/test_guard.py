"""A server's tree ends with the stage that started it, in every way in which one can end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stages.guard import guard_command

ROOT = Path(__file__).resolve().parents[3]
# As vLLM: the server answers SIGTERM, what it starts does not, and would stay if nobody ended it.
SERVER = """
import signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
engine = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
engine.stdout.readline()
print("up", flush=True)
{ending}
"""
STAGE = """
import subprocess, sys, time
from stages.guard import guard_command
subprocess.Popen(guard_command("fake_server", grace_seconds=0.5), start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """What starts a guarded server, once that is up, and the file with its output."""
    code, ending = request.param
    (tmp_path / "fake_server.py").write_text(SERVER.format(ending=ending))
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = guard_command("fake_server", grace_seconds=0.5) if code is None else [sys.executable, "-c", code]
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, stdout=output, start_new_session=True
        )
    deadline = time.monotonic() + 20
    while b"up" not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"up" in log.read_bytes()
    yield process, log
    process.kill()
    process.wait()


def below(process: subprocess.Popen[bytes], count: int) -> list[psutil.Process]:
    members = psutil.Process(process.pid).children(recursive=True)
    assert len(members) == count
    return members


def assert_all_end(members: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(members, timeout=20)
    for member in alive:
        member.kill()
    assert alive == []


@pytest.mark.parametrize("started", [(STAGE, "time.sleep(600)")], indirect=True)
def test_a_killed_stage_takes_guard_server_and_engine_along(started: tuple[subprocess.Popen[bytes], Path]) -> None:
    stage, _ = started
    members = below(stage, 3)
    stage.kill()
    assert_all_end(members)


@pytest.mark.parametrize("started", [(None, "time.sleep(600)")], indirect=True)
def test_sigterm_to_the_guard_ends_server_and_engine(started: tuple[subprocess.Popen[bytes], Path]) -> None:
    guard, _ = started
    members = below(guard, 2)
    guard.terminate()
    assert_all_end(members)
    assert guard.wait(5) == 128 + signal.SIGTERM


@pytest.mark.parametrize("started", [(None, "time.sleep(1); sys.exit(7)")], indirect=True)
def test_a_server_that_ends_takes_its_engine_along_and_its_status_is_told(
    started: tuple[subprocess.Popen[bytes], Path],
) -> None:
    guard, _ = started
    members = below(guard, 2)
    assert guard.wait(20) == 7
    assert_all_end(members)


@pytest.mark.parametrize("started", [(None, "time.sleep(600)")], indirect=True)
def test_a_killed_server_takes_its_engine_along(started: tuple[subprocess.Popen[bytes], Path]) -> None:
    guard, _ = started
    members = below(guard, 2)
    server = psutil.Process(guard.pid).children()[0]
    server.kill()
    assert guard.wait(20) == 128 + signal.SIGKILL
    assert_all_end(members)
