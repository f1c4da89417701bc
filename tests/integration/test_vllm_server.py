"""A real `vllm serve` on the CPU, started by the backend: what was sent acts, and nothing of it stays."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import torch

from data.errors import ConfigError, StageError
from stages.models.shared_base import SharedBase
from stages.process_tree import tree_of
from stages.ranks import Ranks
from stages.rollouts.adapter_files import AdapterFiles
from stages.rollouts.config import RolloutConfig, VLLMConfig, VLLMServerConfig
from stages.rollouts.contract import PublishedAdapter, Rollout
from stages.rollouts.factory import build_engine
from stages.rollouts.sync_proof import SyncBounds, SyncProof
from stages.rollouts.synced_engine import SyncedEngine
from stages.rollouts.vllm_client import VLLMClient
from stages.rollouts.vllm_server import VLLMServerBackend
from stages.seeds import row_seeds
from tests.integration.vllm_parts import (
    EOS,
    PAD,
    PROMPTS,
    SAMPLING,
    base_with_policy,
    check_endings,
    largest_gap,
    model_section,
    move,
)
from tests.unit.stages.parts import stage_context

MAX_LENGTH = 128


class Parts(SimpleNamespace):
    """The trainer's model, the adapters' files, the server and an engine over the three."""

    base: Path
    shared_base: SharedBase
    files: AdapterFiles
    backend: VLLMServerBackend
    engine: SyncedEngine


@pytest.fixture(scope="module")
def parts(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """One server for all tests here: it takes half a minute to start."""
    folder = tmp_path_factory.mktemp("server")
    model = model_section(tiny_llama)
    shared_base = base_with_policy(tiny_llama, model, folder / "adapter")
    backend = VLLMServerBackend(
        VLLMServerConfig(),
        VLLMConfig(),
        model,
        served=tiny_llama,
        eos_token_id=EOS,
        max_length=MAX_LENGTH,
        seed=5,
        log_path=folder / "vllm.log",
        ranks=Ranks(),
    )
    files = AdapterFiles(shared_base, model.base, None, folder, Ranks())
    engine = SyncedEngine(
        backend,
        shared_base,
        files,
        SyncProof(SyncBounds.of("float32")),
        probe_prompts=PROMPTS,
        pad_token_id=PAD,
        dtype=torch.float32,
    )
    yield Parts(base=tiny_llama, shared_base=shared_base, files=files, backend=backend, engine=engine)
    engine.close()


def same(left: list[Rollout], right: list[Rollout]) -> bool:
    """Equal tokens, and log-probabilities up to what it changes in float32 which requests share a batch."""
    return all(
        (a.prompt_ids, a.response_ids, a.finished) == (b.prompt_ids, b.response_ids, b.finished)
        and a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        for a, b in zip(left, right, strict=True)
    )


def served_names(parts: Parts) -> set[str]:
    client = VLLMClient(
        parts.backend.address, parts.backend.api_key, api_key_source="", timeout_seconds=10, max_connections=1,
        what_to_do=str,
    )  # fmt: skip
    names = {model.name for model in client.models()}
    client.close()
    return names


def test_the_server_listens_on_loopback_and_wants_its_key(parts: Parts) -> None:
    assert parts.backend.process is not None
    tree = tree_of(parts.backend.process.pid)
    listening = {c.laddr.ip for p in tree for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    with httpx.Client(base_url=parts.backend.address, trust_env=False) as http:
        assert http.get("/v1/models").status_code == 401
        planted = {"lora_name": "planted", "lora_path": "/tmp"}
        for key in ({}, {"Authorization": "Bearer guessed"}):
            assert http.post("/v1/load_lora_adapter", json=planted, headers=key).status_code == 401


def test_checklist_21_each_version_that_is_sent_is_the_one_that_acts(parts: Parts) -> None:
    shared_base, engine = parts.shared_base, parts.engine
    prompts = PROMPTS * 4
    seeds = row_seeds(5, len(prompts))
    with pytest.raises(ValueError, match="no policy is loaded"):
        engine.generate(prompts, SAMPLING, seeds=seeds)
    stale: list[Rollout] = []
    for version in (1, 2, 3):
        loaded = engine.load_policy("policy")
        assert loaded.number == version
        assert loaded.metrics["sync/gap_rms"] < 1e-4
        assert ("sync/correlation" in loaded.metrics) == (version > 1)
        rollouts = engine.generate(prompts, SAMPLING, seeds=seeds)
        # FACTS: float32 on both sides agrees to 2e-6; the step below moves the policy a thousand times further.
        assert largest_gap(shared_base, rollouts) < 1e-4
        assert [rollout.prompt_ids for rollout in rollouts] == [tuple(prompt) for prompt in prompts]
        assert not stale or not same(rollouts, stale)
        assert same(engine.generate(prompts, SAMPLING, seeds=seeds), rollouts)
        stale = rollouts
        move(shared_base, 0.05, seed=version)
        # Not sent yet: the engine still acts with the version before, and the gap says so.
        assert largest_gap(shared_base, engine.generate(prompts, SAMPLING, seeds=seeds)) > 1e-2


def test_responses_end_with_eos_or_at_the_limit(parts: Parts) -> None:
    parts.engine.load_policy("policy")
    check_endings(parts.engine)


def test_another_stage_uses_the_server_by_its_address(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parts.backend.api_key is not None
    monkeypatch.setenv("OTHER_KEY", parts.backend.api_key)
    parts.engine.load_policy("policy")
    probe = parts.backend.next_token_logprobs(PROMPTS)
    served = served_names(parts)
    server = {"address": parts.backend.address + "/v1", "api_key_env": "OTHER_KEY", "adapter_dir": str(tmp_path / "a")}
    other = build_engine(
        RolloutConfig.model_validate({**SAMPLING.model_dump(), "engine": "vllm_server", "server": server}),
        model_section(parts.base),
        parts.shared_base,
        base=parts.base,
        tokenizer=SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS),
        prompts=PROMPTS,
        batch_size=4,
        max_prompt_tokens=MAX_LENGTH - SAMPLING.max_new_tokens,
        context=stage_context(tmp_path),
    )
    assert other.load_policy("policy").metrics["sync/gap_rms"] < 1e-4
    assert len(served_names(parts)) == len(served) + 1
    seeds = row_seeds(2, len(PROMPTS))
    rollouts = other.generate(PROMPTS, SAMPLING, seeds=seeds)
    assert same(rollouts, parts.engine.generate(PROMPTS, SAMPLING, seeds=seeds))
    other.close()
    # The server goes on, and none of the other's adapters is left in it or on the disk.
    assert served_names(parts) == served
    assert list((tmp_path / "a").iterdir()) == []
    assert parts.backend.next_token_logprobs(PROMPTS) == probe


def test_the_server_samples_what_vllm_in_process_samples(parts: Parts) -> None:
    from stages.rollouts.vllm_engine import VLLMBackend

    in_process = VLLMBackend(
        VLLMConfig(),
        model_section(parts.base),
        served=parts.base,
        eos_token_id=EOS,
        max_length=MAX_LENGTH,
        seed=5,
        ranks=Ranks(),
    )
    sent = parts.files.publish("policy")
    prompts = PROMPTS * 6
    seeds = row_seeds(3, len(prompts))
    for backend in (in_process, parts.backend):
        backend.load_adapter(sent)
    assert same(in_process.sample(prompts, SAMPLING, seeds), parts.backend.sample(prompts, SAMPLING, seeds))
    for ours, theirs in zip(
        in_process.next_token_logprobs(PROMPTS), parts.backend.next_token_logprobs(PROMPTS), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-5)
    parts.backend.unload_adapter(sent)
    in_process.close()


def test_a_wrong_key_an_unfit_adapter_and_a_long_prompt_are_refused(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "wrong")
    config = VLLMServerConfig(address=parts.backend.address, api_key_env="OTHER_KEY")
    with pytest.raises(ConfigError, match=r"refused the API key \(401\).*environment variable OTHER_KEY"):
        VLLMServerBackend(
            config, VLLMConfig(), model_section(parts.base), served=parts.base, eos_token_id=EOS,
            max_length=MAX_LENGTH, seed=5, log_path=tmp_path / "none", ranks=Ranks(),
        )  # fmt: skip
    model = model_section(parts.base)
    wide = model.model_copy(update={"tuning": model.tuning.model_copy(update={"rank": 16, "alpha": 16})})
    base_with_policy(parts.base, wide, tmp_path / "wide")
    with pytest.raises(StageError, match=r"refused adapter wide in .*LoRA rank 16 is greater than.*--max-lora-rank"):
        parts.backend.load_adapter(PublishedAdapter(1, "wide", tmp_path / "wide", ""))
    with pytest.raises(StageError, match=r"refused adapter none.*No adapter found.*`rollout\.server\.adapter_dir`"):
        parts.backend.load_adapter(PublishedAdapter(1, "none", tmp_path / "none", ""))
    parts.engine.load_policy("policy")
    with pytest.raises(StageError, match=r"answered 400 to a prompt of 130 tokens"):
        parts.engine.generate([[5] * 130], SAMPLING, seeds=[1])


def test_an_engine_that_is_killed_in_the_middle_of_generating_comes_back_with_the_same_responses(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine's process, below the server that answers: what a GPU's fault or the system's want of memory ends."""
    engine, backend = parts.engine, parts.backend
    prompts, seeds = PROMPTS * 8, row_seeds(4, len(PROMPTS) * 8)
    engine.load_policy("policy")
    undisturbed = engine.generate(prompts, SAMPLING, seeds=seeds)
    assert backend.process is not None
    tree = tree_of(backend.process.pid)
    victim = next(member for member in tree if "EngineCore" in f"{member.cmdline()} {member.name()}")
    complete, answered = VLLMClient.complete, [0]

    def killing(self: VLLMClient, *arguments: Any, **others: Any) -> Any:
        found = complete(self, *arguments, **others)
        answered[0] += 1
        if answered[0] == 6:
            victim.kill()
        return found

    monkeypatch.setattr(VLLMClient, "complete", killing)
    monkeypatch.setattr(backend, "_max_parallel_requests", 3)
    with caplog.at_level(logging.WARNING):
        assert same(engine.generate(prompts, SAMPLING, seeds=seeds), undisturbed)
    assert "the rollout engine died and is started again" in caplog.text
    assert engine.load_policy("policy").metrics["rollout/engine_restarts"] == 1.0
    assert psutil.wait_procs(tree, timeout=0)[1] == [], "nothing of the first server is left"
    assert largest_gap(parts.shared_base, engine.generate(prompts, SAMPLING, seeds=seeds)) < 1e-4


def test_nothing_is_left_after_close(parts: Parts) -> None:
    assert parts.backend.process is not None
    tree = tree_of(parts.backend.process.pid)
    assert len(tree) >= 3  # guard, API server and engine at least
    assert not any(parts.backend.api_key in argument for member in tree for argument in member.cmdline())
    assert parts.files.folder.is_dir()
    parts.engine.close()
    _, alive = psutil.wait_procs(tree, timeout=0)
    assert alive == []
    assert not parts.files.folder.exists()
