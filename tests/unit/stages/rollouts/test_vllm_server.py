"""The client of a vLLM server and the process that is started, against a stand-in that answers as vLLM does."""

import logging
import math
import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from data.errors import ConfigError, StageError
from stages.process_tree import tree_of
from stages.rollouts import vllm_process
from stages.rollouts.config import SamplingConfig, VLLMConfig, VLLMServerConfig
from stages.rollouts.contract import EngineDiedError, PublishedAdapter
from stages.rollouts.vllm_process import VLLMProcess, server_arguments
from tests.unit.stages.rollouts.served import EOS, PROMPTS, SAMPLING, Connect, backend_of, model_section, published
from tests.vllm_stand_in import StandIn, logprobs


def test_rollouts_are_read_token_by_token(connect: Connect, stand_in: StandIn, tmp_path: Path) -> None:
    backend = connect()
    backend.load_adapter(published(tmp_path))
    seeds = [2**63 - 1, 2, 3, 4]
    rollouts = backend.sample(PROMPTS, SAMPLING, seeds)
    for prompt, rollout in zip(PROMPTS, rollouts, strict=True):
        assert rollout.prompt_ids == tuple(prompt)
        context = [prompt[-1], *rollout.response_ids]
        expected = [
            logprobs("policy-v1", last, SAMPLING.temperature)[token]
            for last, token in zip(context, rollout.response_ids, strict=False)
        ]
        assert rollout.logprobs == tuple(expected)  # exactly: JSON carries floats as they are
        assert rollout.finished == (rollout.response_ids[-1] == EOS)
        assert EOS not in rollout.response_ids[:-1]
        assert rollout.finished or len(rollout.response_ids) == SAMPLING.max_new_tokens
    sent = [body for body in stand_in.behaviour.completions if body["max_tokens"] == SAMPLING.max_new_tokens]
    assert sorted((tuple(body["prompt"]), body["seed"]) for body in sent) == sorted(
        zip(map(tuple, PROMPTS), seeds, strict=True)
    )
    for body in sent:
        assert (body["model"], body["temperature"], body["stop_token_ids"]) == ("policy-v1", 0.7, [EOS])
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
        assert body["ignore_eos"] is True
    assert backend.sample(PROMPTS, SAMPLING, seeds) == rollouts
    assert backend.sample(PROMPTS, SAMPLING, [5, 6, 7, 8]) != rollouts


def test_a_response_ends_with_the_tokenizers_eos(connect: Connect) -> None:
    rollouts = connect().sample([[5]] * 64, SamplingConfig(max_new_tokens=20), list(range(64)))
    finished = [rollout for rollout in rollouts if rollout.response_ids[-1] == EOS]
    assert 0 < len(finished) < 64
    assert all(rollout.finished == (rollout in finished) for rollout in rollouts)


def test_the_probe_is_the_likeliest_tokens_at_temperature_1(connect: Connect, tmp_path: Path) -> None:
    backend = connect()
    backend.load_adapter(published(tmp_path))
    for prompt, found in zip(PROMPTS, backend.next_token_logprobs(PROMPTS), strict=True):
        everything = logprobs("policy-v1", prompt[-1], 1.0)
        assert math.fsum(math.exp(value) for value in everything.values()) == pytest.approx(1.0)
        assert len(found) in (20, 21)  # the sampled token may be among the 20
        assert found.items() <= everything.items()
        assert set(list(everything)[:20]) <= found.keys()


def test_order_is_kept_and_requests_are_bounded(connect: Connect, stand_in: StandIn) -> None:
    backend = connect(max_parallel_requests=3)
    stand_in.behaviour.delay_seconds = 0.02
    prompts = [[number] for number in range(5, 25)]
    rollouts = backend.sample(prompts, SamplingConfig(max_new_tokens=1), [0] * 20)
    assert [rollout.prompt_ids for rollout in rollouts] == [tuple(prompt) for prompt in prompts]
    assert 1 < stand_in.behaviour.most_under_way <= 3


def test_adapters_come_and_go_under_their_own_names(connect: Connect, stand_in: StandIn, tmp_path: Path) -> None:
    backend = connect()
    first, second = published(tmp_path, 1), published(tmp_path, 2)
    loaded = backend.load_adapter(first)
    assert (loaded.name, loaded.path, loaded.digest) == (first.name, str(first.folder), first.digest)
    assert backend.load_adapter(second).digest == second.digest
    backend.unload_adapter(first)
    assert stand_in.behaviour.adapters == {second.name: str(second.folder)}
    backend.sample([[5]], SamplingConfig(max_new_tokens=1), [1])
    assert stand_in.behaviour.completions[-1]["model"] == second.name
    with pytest.raises(StageError, match=r"did not unload adapter policy-v1: The lora adapter 'policy-v1' cannot be"):
        backend.unload_adapter(first)
    backend.close()
    assert stand_in.behaviour.adapters == {}  # the server is another's: ours are gone from it
    backend.close()


def test_a_changed_file_shows_in_the_digest(connect: Connect, tmp_path: Path) -> None:
    sent = published(tmp_path)
    (sent.folder / "adapter_config.json").write_text('{"r": 4, "version": 99}')
    assert connect().load_adapter(sent).digest != sent.digest


def test_a_server_that_dies_does_not_keep_a_stage_from_closing(
    connect: Connect, stand_in: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = connect()
    backend.load_adapter(published(tmp_path))
    stand_in.behaviour.breaks_off = True
    with caplog.at_level(logging.WARNING):
        backend.close()
    assert "broke off while it answered /v1/unload_lora_adapter" in caplog.text


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        (
            {"api_key": "other"},
            ConfigError,
            r"refused the API key \(401\).*variable STAND_IN_KEY; put the server's own",
        ),
        ({"max_model_len": 32}, ConfigError, r"at most 32 tokens.*up to 64; start it with --max-model-len 64"),
    ],
)
def test_an_unfit_server_is_refused_at_once(
    connect: Connect, stand_in: StandIn, behaviour: dict[str, Any], error: type[Exception], message: str
) -> None:
    vars(stand_in.behaviour).update(behaviour)
    with pytest.raises(error, match=message):
        connect()


def test_no_key_is_sent_where_none_is_set(connect: Connect, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAND_IN_KEY")
    with pytest.raises(ConfigError, match=r"variable STAND_IN_KEY, which is not set"):
        connect()
    stand_in.behaviour.api_key = None
    assert connect().api_key is None


@pytest.mark.parametrize(
    ("behaviour", "rank", "error", "message"),
    [
        (
            {"updates_adapters": False}, 4, ConfigError,
            r"has no /v1/load_lora_adapter.*start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora",
        ),
        ({}, 16, StageError, r"refused adapter policy-v1.*rank 16 is greater than.*--max-lora-rank of at least 4"),
        ({"lists_adapters": False}, 4, StageError, r"loaded adapter policy-v1 and does not list it.*without replicas"),
        ({"adapters": {"policy-v1": "x"}}, 4, StageError, r"has already been loaded"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_loaded_ends_the_stage(
    connect: Connect,
    stand_in: StandIn,
    tmp_path: Path,
    behaviour: dict[str, Any],
    rank: int,
    error: type[Exception],
    message: str,
) -> None:
    backend = connect()
    vars(stand_in.behaviour).update(behaviour)
    with pytest.raises(error, match=message):
        backend.load_adapter(published(tmp_path, rank=rank))


def test_a_folder_that_the_server_does_not_see(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"No adapter found for .*; needed are.*`rollout\.server\.adapter_dir`"):
        connect().load_adapter(PublishedAdapter(1, "policy-v1", tmp_path / "nowhere", ""))


def test_raw_logprobs_are_found_where_the_temperature_matters(connect: Connect, stand_in: StandIn) -> None:
    stand_in.behaviour.processed_logprobs = False
    backend = connect()
    backend.sample(PROMPTS, SamplingConfig(max_new_tokens=2, temperature=1.0), [1, 2, 3, 4])
    with pytest.raises(ConfigError, match=r"temperatures 0\.5 and 1\.0.*start it with --logprobs-mode processed_log"):
        backend.sample(PROMPTS, SAMPLING, [1, 2, 3, 4])
    stand_in.behaviour.processed_logprobs = True
    backend.sample(PROMPTS, SAMPLING, [1, 2, 3, 4])
    checks = [body for body in stand_in.behaviour.completions if body["max_tokens"] == 1]
    backend.sample(PROMPTS, SAMPLING, [1, 2, 3, 4])
    assert [body for body in stand_in.behaviour.completions if body["max_tokens"] == 1] == checks  # once is enough


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"tokens_as_ids": False}, r"without token ids and their log-probabilities.*vLLM 0\.26 to 0\.32 gives them"),
        ({"model": "renamed"}, r"answered 404 to a prompt of 3 tokens for base: The model `base` does not exist"),
        ({"breaks_off": True}, r"broke off while it answered /v1/completions.*start it with `VLLM_ALLOW"),
        ({"delay_seconds": 1.0}, r"did not answer /v1/completions within 0\.5 s.*`rollout\.server\.request_timeout"),
    ],
)
def test_a_failed_request_ends_the_stage(
    connect: Connect, stand_in: StandIn, behaviour: dict[str, Any], message: str
) -> None:
    backend = connect(request_timeout_seconds=0.5)
    vars(stand_in.behaviour).update(behaviour)
    with pytest.raises(StageError, match=message):
        backend.sample(PROMPTS, SamplingConfig(max_new_tokens=2), [1, 2, 3, 4])


def test_nobody_waits_for_the_rest_after_an_error(connect: Connect, stand_in: StandIn) -> None:
    backend = connect(max_parallel_requests=1)
    stand_in.behaviour.tokens_as_ids = False
    stand_in.behaviour.delay_seconds = 0.05
    with pytest.raises(StageError, match="without token ids"):
        backend.sample([[5]] * 100, SamplingConfig(max_new_tokens=1), [0] * 100)
    for thread in threading.enumerate():
        if thread.name.startswith("vllm-request"):
            thread.join()
    assert len(stand_in.behaviour.completions) < 10


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1", r"nothing answers at http://127\.0\.0\.1:1 .*start it with `VLLM_ALLOW"),
        ("http://localhost:abc", r"found 'http://localhost:abc', which is no address.*http://host:8000"),
    ],
)
def test_an_address_where_nothing_is(address: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((StageError, ConfigError), match=message):
        backend_of(VLLMServerConfig(address=address), tmp_path)


def test_what_is_no_vllm_server_is_told_so(stand_in: StandIn, connect: Connect) -> None:
    with pytest.raises(ConfigError, match=r"no list of models; a vLLM server is needed there: correct"):
        connect(address=stand_in.address + "/health/v1")


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://h:1", "http://", "http://user:key@host:1", "http://h h"])
def test_an_address_is_checked_before_anything_runs(address: str) -> None:
    with pytest.raises(ValidationError, match="must be an address without a key in it; write it as http://host:8000"):
        VLLMServerConfig(address=address)


@pytest.mark.parametrize("address", ["http://h:8000", "https://h", "http://[::1]:8000/v1", "https://gate/vllm/"])
def test_usual_addresses_pass(address: str) -> None:
    assert VLLMServerConfig(address=address).address == address


def test_the_server_is_told_what_the_engine_in_process_is() -> None:
    model = model_section(revision="abc", trust_remote_code=True)
    config = VLLMConfig(gpu_memory_utilization=0.5, enforce_eager=False, prefix_caching=True)
    found = server_arguments(config, model, served="/some/base", max_length=300, seed=2**31 + 3)
    assert found == [
        "--model=/some/base", "--revision=abc", "--trust-remote-code", "--dtype=float32", "--seed=3", "--enable-lora",
        "--max-loras=1", "--max-cpu-loras=2", "--max-lora-rank=8", "--max-model-len=300",
        "--gpu-memory-utilization=0.5", "--enable-prefix-caching", "--logprobs-mode=processed_logprobs",
        "--max-logprobs=20", "--generation-config=vllm", "--disable-log-stats", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    default = server_arguments(VLLMConfig(), model_section(), served="b", max_length=3, seed=0)
    assert {"--enforce-eager", "--no-enable-prefix-caching"} <= set(default)
    assert not [argument for argument in default if argument.startswith(("--revision", "--trust"))]


@pytest.fixture
def stand_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that is started is the stand-in's."""
    monkeypatch.setattr(vllm_process, "_MODULE", "tests.vllm_stand_in")


@pytest.mark.usefixtures("stand_in_process")
def test_a_server_of_its_own_is_started_used_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    backend = backend_of(VLLMServerConfig(), tmp_path)
    try:
        process = backend.process
        assert process is not None and backend.api_key == process.api_key
        tree = tree_of(process.pid)
        assert len(tree) == 3  # guard, server, its engine
        variables = {name for member in tree for name in member.environ()}
        assert not variables & {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"}
        assert not any(backend.api_key in argument for member in tree for argument in member.cmdline())
        assert backend.load_adapter(published(tmp_path)).name == "policy-v1"
        assert len(backend.sample(PROMPTS, SAMPLING, [1, 2, 3, 4])) == 4
    finally:
        backend.close()
    assert psutil.wait_procs(tree, timeout=0)[1] == []
    backend.close()


@pytest.mark.usefixtures("stand_in_process")
def test_a_server_that_dies_is_named_with_its_log_and_another_takes_its_place(tmp_path: Path) -> None:
    backend = backend_of(VLLMServerConfig(), tmp_path)
    try:
        tree = tree_of(backend.process.pid)
        server = next(member for member in tree if "tests.vllm_stand_in" in member.cmdline()[2:3])
        server.kill()
        with pytest.raises(EngineDiedError) as error:
            backend.sample(PROMPTS, SAMPLING, [1, 2, 3, 4])
        assert "it has ended with status 137; see its log" in str(error.value)
        assert str(tmp_path / "vllm.log") in str(error.value)
        assert "\n    arguments Namespace(host='127.0.0.1'" in str(error.value)
        assert psutil.wait_procs(tree, timeout=5)[1] == []
        error.value.restart()
        tree = tree_of(backend.process.pid)
        assert backend.load_adapter(published(tmp_path)).name == "policy-v1"
        assert len(backend.sample(PROMPTS, SAMPLING, [1, 2, 3, 4])) == 4
        assert {path.name for path in tmp_path.glob("*.log")} == {"vllm.log", "vllm-2.log"}
    finally:
        backend.close()
    assert psutil.wait_procs(tree, timeout=0)[1] == []


@pytest.mark.usefixtures("stand_in_process")
def test_a_server_that_does_not_start_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"did not start; a base and settings.*status 1; see its log") as error:
        backend_of(VLLMServerConfig(), tmp_path, served="refused")
    assert str(error.value).endswith("    RuntimeError: Engine core initialization failed.")


@pytest.mark.usefixtures("stand_in_process")
def test_a_server_that_takes_too_long_is_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = set(psutil.Process(os.getpid()).children(recursive=True))
    patience = vllm_process._REPORT_SECONDS
    try:
        vllm_process._REPORT_SECONDS = 1.0
        with (
            caplog.at_level(logging.INFO),
            pytest.raises(StageError, match=r"did not answer within 2\.5 s; raise `rollout\.server\.startup_timeout"),
        ):
            backend_of(VLLMServerConfig(startup_timeout_seconds=2.5), tmp_path, served="slow")
    finally:
        vllm_process._REPORT_SECONDS = patience
    assert f"vLLM server: not up after 1 s; its log is {tmp_path / 'vllm.log'}" in caplog.text
    assert set(psutil.Process(os.getpid()).children(recursive=True)) == before


def test_a_process_can_be_closed_before_it_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_process, "_MODULE", "tests.vllm_stand_in")
    process = VLLMProcess([], kv_cache_gib=1.0, log_path=tmp_path / "deep" / "vllm.log")
    tree = tree_of(process.pid)
    process.close()
    assert psutil.wait_procs(tree, timeout=0)[1] == []
