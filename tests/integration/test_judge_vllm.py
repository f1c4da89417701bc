"""A judge behind a real vLLM server on the CPU. Its model is random: what it says is noise, the asking is real."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from data.errors import StageError
from rewards.judge import PairJudge
from rewards.judge_config import PairJudgeConfig
from tests.tiny import tiny_model_dir


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server, and its process."""
    base = tiny_model_dir("qwen2", tmp_path / "judge")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--host", "127.0.0.1",
        "--served-model-name", "judge", "--port", str(port), "--max-model-len", "256",
        "--enforce-eager", "--dtype", "float32",
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while not _is_up(address):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "vllm.log").read_text()[-3000:]
            time.sleep(0.5)
        yield f"{address}/v1", process
    finally:
        _end(process)


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    process.kill()
    for child in tree:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def test_a_real_server_is_asked_once_and_its_answers_outlive_it(
    server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    address, process = server
    (tmp_path / "short.txt").write_text("{prompt}\nA: {first}\nB: {second}\n[[A]]?", encoding="utf-8")
    endpoint = {"address": address, "model": "judge", "max_tokens": 4, "max_retries": 0}
    config = PairJudgeConfig.model_validate({"endpoint": endpoint, "template": "short.txt"})

    def judge() -> PairJudge:
        return PairJudge(config, tmp_path, tmp_path / "answers.sqlite", setting="preferences.labeler.judge")

    pairs = [("Say hello.", "hello", "你好"), ("Count.", "1 2 3", "no")]
    first = judge()
    found = first(pairs)
    usage = first.endpoint.usage
    unread = sum((each.forward is None) + (each.backward is None) for each in found)
    # Each question once, and once more where a random model said no verdict; all of them were counted by the server.
    assert 4 <= usage.requests <= 8 and usage.requests >= 4 + unread and usage.cached == 0
    assert usage.prompt_tokens > 20 * usage.requests and 0 < usage.completion_tokens <= 4 * usage.requests
    _end(process)
    again = judge()
    assert again(pairs) == found and again.endpoint.usage.requests == 0
    with pytest.raises(StageError, match=r"preferences\.labeler\.judge\.endpoint: .* the last of 1 tries"):
        again([("New.", "a", "b")])
