"""An engine whose process dies: started again once, with the policy of the moment; a second death ends the stage."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.errors import StageError
from stages.models.shared_base import SharedBase
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import EngineDiedError, LoadedAdapter, PublishedAdapter, Rollout
from tests.unit.stages.parts import FoldersOf, all_roles
from tests.unit.stages.rollouts.test_synced_engine import PROBES, SAMPLING, FileBackend, _engine, _move


@pytest.fixture
def shared(folders: FoldersOf) -> SharedBase:
    return all_roles(folders("llama"))


class MortalBackend(FileBackend):
    """Dies when it is told to, and starts again empty."""

    dies_at: str | None = None
    starts = 0

    def _live(self, what: str) -> None:
        if self.dies_at == what:
            self.dies_at = None
            raise EngineDiedError(f"it broke off at {what}", self.start)
        if self.dies_at == f"{what} for ever":
            raise EngineDiedError(f"it broke off at {what}", self.start)

    def start(self) -> None:
        self.starts += 1
        self.role = None
        self.calls.append("start")

    def load_adapter(self, adapter: PublishedAdapter) -> LoadedAdapter:
        self._live("load")
        self.role = "served"
        return super().load_adapter(adapter)

    def sample(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]) -> list[Rollout]:
        self._live("sample")
        assert self.role == "served", "an adapter is loaded again before anything is sampled"
        return super().sample(prompts, sampling, seeds)

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        self._live("probe")
        return super().next_token_logprobs(prompts)


@pytest.mark.parametrize("place", ["sample", "load", "probe"])
def test_an_engine_that_dies_is_started_again_with_the_policy_of_the_moment(
    shared: SharedBase, folders: FoldersOf, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    own = folders("llama")
    backend = MortalBackend(own.base, own.policy)
    engine = _engine(shared, backend, tmp_path)
    assert engine.load_policy("policy").metrics["rollout/engine_restarts"] == 0.0
    rollouts = engine.generate(PROBES, SAMPLING, seeds=[7, 8, 9, 10])
    _move(shared, 1e-2, seed=1)
    if place == "sample":
        engine.load_policy("policy")
    backend.dies_at = place
    with caplog.at_level(logging.WARNING):
        if place != "sample":
            engine.load_policy("policy")
        assert engine.generate(PROBES, SAMPLING, seeds=[7, 8, 9, 10]) == rollouts
    assert backend.starts == 1
    assert f"the rollout engine died and is started again: it broke off at {place}" in caplog.text
    found = engine.load_policy("policy").metrics
    assert found["rollout/engine_restarts"] == 1.0 and found["sync/gap_rms"] < 1e-4
    # Nothing is unloaded from an engine that never had it.
    after = backend.calls[backend.calls.index("start") + 1 :]
    assert (
        after[0].startswith("load")
        and [call for call in after if call.startswith("unload")]
        == [call.replace("load", "unload") for call in after if call.startswith("load")][:-1]
    )


def test_an_engine_that_dies_twice_ends_the_stage(shared: SharedBase, folders: FoldersOf, tmp_path: Path) -> None:
    own = folders("llama")
    backend = MortalBackend(own.base, own.policy)
    engine = _engine(shared, backend, tmp_path)
    engine.load_policy("policy")
    backend.dies_at = "sample"
    engine.generate(PROBES, SAMPLING, seeds=[7, 8, 9, 10])
    backend.dies_at = "sample"
    with pytest.raises(StageError, match=r"rollout\.engine: the engine died again after .*it broke off at sample"):
        engine.generate(PROBES, SAMPLING, seeds=[7, 8, 9, 10])
    assert backend.starts == 1


def test_an_engine_that_dies_once_more_while_it_is_brought_back_ends_the_stage(
    shared: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    own = folders("llama")
    backend = MortalBackend(own.base, own.policy)
    engine = _engine(shared, backend, tmp_path)
    engine.load_policy("policy")
    backend.dies_at = "load for ever"
    with pytest.raises(StageError, match="the engine died again after it had been .*: it broke off at load"):
        engine.load_policy("policy")
    assert backend.starts == 1
