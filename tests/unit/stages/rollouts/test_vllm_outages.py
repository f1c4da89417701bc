"""A vLLM server that goes away for a while, or for good."""

import logging
from pathlib import Path

import pytest

from data.errors import StageError
from stages.rollouts.config import SamplingConfig, VLLMServerConfig
from tests.unit.stages.rollouts.served import PROMPTS, Connect, backend_of, published
from tests.vllm_stand_in import StandIn


def test_a_server_that_comes_back_is_asked_again_and_gives_the_same(
    connect: Connect, stand_in: StandIn, tmp_path: Path, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    backend = connect(max_parallel_requests=1)
    backend.load_adapter(published(tmp_path))
    sampling = SamplingConfig(max_new_tokens=4)
    rollouts = backend.sample(PROMPTS, sampling, [1, 2, 3, 4])
    assert pauses == []
    stand_in.behaviour.outages = [503, 0, 429, 502, 504, -1]
    with caplog.at_level(logging.WARNING):
        assert backend.sample(PROMPTS, sampling, [1, 2, 3, 4]) == rollouts
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0] and stand_in.behaviour.outages == []
    assert "/v1/completions: answered 503; sent again in 0 s (1 of 6)" in caplog.text


def test_an_adapter_whose_answer_was_lost_is_taken_as_loaded_and_unloaded(
    connect: Connect, stand_in: StandIn, tmp_path: Path
) -> None:
    backend = connect()
    sent = published(tmp_path)
    stand_in.behaviour.outages = [-1]
    assert backend.load_adapter(sent).name == sent.name
    stand_in.behaviour.outages = [-1]
    backend.unload_adapter(sent)
    assert stand_in.behaviour.adapters == {} and stand_in.behaviour.outages == []


def test_a_server_that_stays_away_ends_the_stage_after_the_last_try(
    connect: Connect, stand_in: StandIn, pauses: list[float]
) -> None:
    backend = connect(max_retries=2, max_parallel_requests=1)
    stand_in.behaviour.outages = [503, 0, 503]
    with pytest.raises(StageError, match=r"answered 503 to a prompt of 3 tokens for base: not now; a server that"):
        backend.sample([[5, 6, 7]], SamplingConfig(max_new_tokens=1), [1])
    assert pauses == [1.0, 2.0]
    stand_in.behaviour.breaks_off = True
    with pytest.raises(StageError, match="broke off while it answered /v1/completions"):
        backend.sample([[5, 6, 7]], SamplingConfig(max_new_tokens=1), [1])


def test_a_server_that_was_never_there_is_told_at_once(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(StageError, match="nothing answers at"):
        backend_of(VLLMServerConfig(address="http://127.0.0.1:1"), tmp_path)
    assert pauses == []


def test_a_server_that_was_started_anew_by_another_does_not_know_the_adapter(
    connect: Connect, stand_in: StandIn, tmp_path: Path
) -> None:
    backend = connect()
    backend.load_adapter(published(tmp_path))
    stand_in.behaviour.adapters.clear()
    with pytest.raises(StageError, match=r"answered 404 .* if it was started anew, `rlhf resume` sends it the adapter"):
        backend.sample([[5]], SamplingConfig(max_new_tokens=1), [1])
