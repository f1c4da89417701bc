"""The example of docs/examples, started as its header says and asked by the component."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from data.errors import StageError
from rewards.composite_config import RemoteRewardConfig
from rewards.contract import Episode
from rewards.factory import build_reward
from rewards.remote import RemoteReward

SERVER = Path(__file__).resolve().parents[3] / "docs" / "examples" / "reward_server.py"
EPISODES = [
    Episode("Say it", text, (1,), (2,), "Say it", True) for text in ("say it again", "no", "", "\u518d\u8bf4 it")
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start it on a free port, with a token."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "REWARD_TOKEN": "a-token-of-a-test"},
    )  # fmt: skip
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()


def config(address: str, **settings: Any) -> RemoteRewardConfig:
    return RemoteRewardConfig(address=address, token_env="REWARD_TOKEN", max_retries=0, **settings)


def test_it_is_well_and_scores(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "a-token-of-a-test")
    reward = build_reward(config(address, health="/health", batch_size=3), None, Path("none"))
    assert reward(EPISODES) == [pytest.approx(1 / 3), 1.0, 0.0, 0.5]


def test_it_refuses_what_it_does_not_know(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "another")
    with pytest.raises(StageError, match=r"/score answered 401 '.*a bearer token is needed.*'"):
        RemoteReward(config(address))(EPISODES)
    with pytest.raises(StageError, match=r"/healthy answered 404 '.*GET /health.*', which another try"):
        build_reward(config(address, health="/healthy"), None, Path("none"))
    headers = {"Authorization": "Bearer a-token-of-a-test"}
    answer = httpx.post(address, json={"prompts": ["a"], "responses": []}, headers=headers, trust_env=False)
    assert answer.status_code == 422 and "of one length" in answer.text
