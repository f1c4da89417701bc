"""A stand-in for a vLLM server, and backends that talk to it without waiting."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.retrying import backoff_seconds
from stages.rollouts import vllm_client
from stages.rollouts.config import VLLMServerConfig
from stages.rollouts.vllm_server import VLLMServerBackend
from tests.unit.stages.rollouts.served import Connect, backend_of
from tests.vllm_stand_in import Behaviour, StandIn


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    server = StandIn(Behaviour())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before requests that are sent again; nobody waits for them."""
    found: list[float] = []

    def counted(retry: int) -> float:
        found.append(backoff_seconds(retry))
        return 0.0

    monkeypatch.setattr(vllm_client, "backoff_seconds", counted)
    return found


@pytest.fixture
def connect(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Makes backends for the stand-in and closes them."""
    made: list[VLLMServerBackend] = []
    monkeypatch.setenv("STAND_IN_KEY", "right")

    def make(*, max_length: int = 64, **settings: Any) -> VLLMServerBackend:
        given = {"address": stand_in.address, "api_key_env": "STAND_IN_KEY", "request_timeout_seconds": 5} | settings
        made.append(backend_of(VLLMServerConfig.model_validate(given), tmp_path, max_length=max_length))
        return made[-1]

    yield make
    for backend in made:
        backend.close()
