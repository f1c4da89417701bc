"""Publish, load, prove: over an engine that computes from the adapter files it was told to load, and wrong ones."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.ranks import Ranks
from stages.rollouts.adapter_files import AdapterFiles, folder_digest
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import LoadedAdapter, PublishedAdapter, Rollout
from stages.rollouts.sync_proof import SyncBounds, SyncError, SyncProof
from stages.rollouts.synced_engine import SyncedEngine
from tests.unit.stages.parts import PAD, FoldersOf, all_roles, model_config, random_rows, same, snapshot

PROBES = random_rows([6, 3, 9, 1], seed=5)
SAMPLING = SamplingConfig(max_new_tokens=3)


class FileBackend:
    """A copy of the base that reads the adapter's files, one prompt at a time without padding. An honest stand-in."""

    def __init__(self, base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> None:
        model = model_config(base)
        self.own = SharedBase(load_causal_lm(base, model, "cpu"), model)
        self.own.add_adapter("served", adapter, trainable=False)
        self.dtype = dtype
        self.role: str | None = "served"
        self.calls: list[str] = []

    def load_adapter(self, adapter: PublishedAdapter) -> LoadedAdapter:
        self.calls.append(f"load v{adapter.version}")
        self.read(adapter.folder)
        return LoadedAdapter(adapter.name, str(adapter.folder), folder_digest(adapter.folder))

    def read(self, folder: Path) -> None:
        """Take over the weights of a folder, in this engine's type."""
        from stages.models.tuning import load_adapter_weights

        load_adapter_weights(self.own.peft_model, folder, "served")
        with torch.no_grad():
            for parameter in self.own.parameters("served"):
                parameter.copy_(parameter.to(self.dtype))

    def unload_adapter(self, adapter: PublishedAdapter) -> None:
        assert adapter.folder.is_dir(), "the files go after the engine has forgotten them"
        self.calls.append(f"unload v{adapter.version}")

    def sample(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]) -> list[Rollout]:
        return [Rollout(tuple(prompt), (seed,), (-1.0,), False) for prompt, seed in zip(prompts, seeds, strict=True)]

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        found = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            with torch.no_grad(), self.own.role(self.role):
                row = self.own.next_token_logprobs(ids, torch.ones_like(ids, dtype=torch.bool))[0]
            values, tokens = row.topk(20)
            found.append(dict(zip(tokens.tolist(), values.tolist(), strict=True)))
        return found

    def close(self) -> None:
        self.calls.append("close")


class StaleBackend(FileBackend):
    """Loads the first version only."""

    def read(self, folder: Path) -> None:
        if not self.calls[:-1]:
            super().read(folder)


class LateBackend(FileBackend):
    """Loads each version one sync too late."""

    waiting: Path | None = None

    def read(self, folder: Path) -> None:
        copy = folder.parents[2] / f"late-{folder.name}"
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        super().read(self.waiting or folder)
        self.waiting = copy


class BareBackend(FileBackend):
    """Forgets the adapter from the second version on."""

    def read(self, folder: Path) -> None:
        super().read(folder)
        self.role = "served" if len(self.calls) == 1 else None


class SwappedBackend(FileBackend):
    """Reads another adapter from the second version on."""

    instead: Path

    def read(self, folder: Path) -> None:
        super().read(folder if len(self.calls) == 1 else self.instead)


class ZeroedFileBackend(FileBackend):
    """Finds the second version's B at 0."""

    def read(self, folder: Path) -> None:
        weights = folder / "adapter_model.safetensors"
        if len(self.calls) == 2:
            save_file({key: value * ("lora_B" not in key) for key, value in load_file(weights).items()}, weights)
        super().read(folder)


class TwinBackend(FileBackend):
    """From the second version on, moves as far as the trainer in a direction of its own."""

    def read(self, folder: Path) -> None:
        super().read(folder)
        if len(self.calls) > 1:
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for parameter in self.own.parameters("served"):
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-4)


@pytest.fixture
def shared(folders: FoldersOf) -> SharedBase:
    return all_roles(folders("llama"))


def _engine(
    shared: SharedBase, backend: FileBackend, folder: Path, dtype: torch.dtype = torch.float32, max_gap: float = 0.002
) -> SyncedEngine:
    files = AdapterFiles(shared, "some/base", folder / "sent", folder, Ranks())
    proof = SyncProof(SyncBounds(max_gap=max_gap, min_judged_change=1e-5))
    return SyncedEngine(backend, shared, files, proof, probe_prompts=PROBES, pad_token_id=PAD, dtype=dtype)


def _move(shared: SharedBase, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in shared.parameters("policy"):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def test_checklist_21_each_version_is_loaded_proven_and_replaced(
    shared: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    own = folders("llama")
    backend = FileBackend(own.base, own.policy)
    engine = _engine(shared, backend, tmp_path)
    for version in range(1, 5):
        loaded = engine.load_policy("policy")
        assert loaded.number == version and loaded.metrics["sync/version"] == version
        (folder,) = (tmp_path / "sent").glob("*/*")
        assert folder.name.startswith(f"policy-v{version}-") and folder_digest(folder) == loaded.digest
        # float32, padded against not padded: rounding. The step below moves thousands of times further.
        assert loaded.metrics["sync/gap_rms"] < 1e-5
        if version > 1:
            assert loaded.metrics["sync/change_rms"] > 1e-3
            assert loaded.metrics["sync/correlation"] > 0.9999
        _move(shared, 1e-2, seed=version)
    assert backend.calls == [
        "load v1",
        "load v2", "unload v1",
        "load v3", "unload v2",
        "load v4", "unload v3",
    ]  # fmt: skip
    engine.close()
    assert backend.calls[-1] == "close" and not list((tmp_path / "sent").iterdir())


def test_the_role_that_is_named_is_the_one_that_is_sent(shared: SharedBase, folders: FoldersOf, tmp_path: Path) -> None:
    """As evaluation does it, and with a policy that has not moved since: nothing to accuse the engine of."""
    own = folders("llama")
    backend = FileBackend(own.base, own.policy)
    engine = _engine(shared, backend, tmp_path)
    digests = []
    for role in ("reference", "policy", "reward", "policy", "reference"):
        digests.append(engine.load_policy(role).digest)
        with shared.role(role), torch.no_grad():
            expected = shared.next_token_logprobs(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.bool))[0]
        for token, value in backend.next_token_logprobs([[5, 6]])[0].items():
            assert value == pytest.approx(float(expected[token]), abs=1e-5)
    assert digests[0] == digests[1] == digests[3] == digests[4] != digests[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (StaleBackend, r"version 2: change: .* those of version 1, bit for bit, while the trainer's moved on 4 of 4"),
        (LateBackend, r"version 2: change: .* those of version 1, bit for bit, while the trainer's moved on 4 of 4"),
        (
            BareBackend,
            r"version 2: agreement: .* differ by 0\.\d+ nats \(RMS\); at most 0\.002 .* another base or none",
        ),
        (SwappedBackend, r"version 2: agreement: .* differ by 0\.\d+ nats \(RMS\); at most 0\.002 "),
        (ZeroedFileBackend, r"version 2: identity: .* the folder .*policy-v2-\w+ was changed on its way"),
        (TwinBackend, r"version 2: correlation: since version 1 .* at least 0\.9\d+ is needed"),
    ],
)
def test_a_wrong_engine_is_caught_at_the_first_step(
    wrong: type[FileBackend], message: str, shared: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    own = folders("llama")
    SwappedBackend.instead = own.reward
    backend = wrong(own.base, own.policy)
    engine = _engine(shared, backend, tmp_path)
    engine.load_policy("policy")
    _move(shared, 1e-4, seed=1)
    with pytest.raises(SyncError, match=message):
        engine.load_policy("policy")
    assert "unload v1" not in backend.calls
    engine.close()
    assert not list((tmp_path / "sent").iterdir())


def test_the_trainers_probe_has_the_adapter_rounded_as_the_engine_has_it(
    shared: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    """Both compute in float32 here, so that nothing but the adapter's rounding can set them apart."""
    own = folders("llama")
    before = snapshot(shared.parameters("policy"))
    gaps = {}
    for dtype in (torch.bfloat16, torch.float32):
        engine = _engine(shared, FileBackend(own.base, own.policy, torch.bfloat16), tmp_path, dtype, max_gap=1.0)
        gaps[dtype] = engine.load_policy("policy").metrics["sync/gap_rms"]
    assert gaps[torch.bfloat16] < 1e-5 < 1e-4 < gaps[torch.float32]
    assert same(before, shared.parameters("policy")), "the trainer's own adapter keeps its bits"


def test_a_step_below_the_rounding_is_no_fault(shared: SharedBase, folders: FoldersOf, tmp_path: Path) -> None:
    """The float32 adapter moves, the engine's bfloat16 copy of it stays: repeating itself is right."""
    own = folders("llama")
    with torch.no_grad():  # in the middle of a rounding interval, so that the steps cannot cross its end
        for parameter in shared.parameters("policy"):
            parameter.copy_(parameter.to(torch.bfloat16))
    engine = _engine(shared, FileBackend(own.base, own.policy, torch.bfloat16), tmp_path, torch.bfloat16)
    digests = set()
    for version in range(1, 4):
        loaded = engine.load_policy("policy")
        digests.add(loaded.digest)
        assert version == 1 or loaded.metrics["sync/change_rms"] == 0.0
        with torch.no_grad():
            for parameter in shared.parameters("policy"):
                parameter.mul_(1 + 1e-5)
    assert len(digests) == 3


def test_the_adapter_gets_its_bits_back_when_the_probe_fails(
    shared: SharedBase, folders: FoldersOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = folders("llama")
    engine = _engine(shared, FileBackend(own.base, own.policy), tmp_path, torch.bfloat16)
    before = snapshot(shared.parameters("policy"))

    def fail(*_: object) -> None:
        assert not same(before, shared.parameters("policy"))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(shared, "next_token_logprobs", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.load_policy("policy")
    assert same(before, shared.parameters("policy"))


def test_samples_come_from_the_backend_once_a_policy_is_loaded(
    shared: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    own = folders("llama")
    engine = _engine(shared, FileBackend(own.base, own.policy), tmp_path)
    with pytest.raises(ValueError, match="no policy is loaded; call load_policy first"):
        engine.generate(PROBES, SAMPLING, seeds=[7, 8, 9, 10])
    engine.load_policy("policy")
    rollouts = engine.generate(PROBES, SAMPLING, seeds=[7, 8, 9, 10])
    assert [(r.prompt_ids, r.response_ids) for r in rollouts] == [
        (tuple(prompt), (seed,)) for prompt, seed in zip(PROBES, [7, 8, 9, 10], strict=True)
    ]


def test_an_engine_goes_on_after_one_that_is_gone(shared: SharedBase, folders: FoldersOf, tmp_path: Path) -> None:
    """Two engines, the second made from the state of the first, prove each version as one engine does."""
    own = folders("llama")
    start = snapshot(shared.parameters("policy"))

    def metrics(change_after: int | None, folder: Path) -> list[dict[str, float]]:
        with torch.no_grad():
            for parameter, value in zip(shared.parameters("policy"), start, strict=True):
                parameter.copy_(value)
        engine = _engine(shared, FileBackend(own.base, own.policy), folder)
        found = [dict(engine.load_policy("policy").metrics)]
        for version in range(2, 6):
            _move(shared, 1e-3, seed=version)
            found.append(dict(engine.load_policy("policy").metrics))
            if version == change_after:
                state = engine.state_dict()
                torch.save(state, folder / "state.pt")
                engine.close()
                engine = _engine(shared, FileBackend(own.base, own.policy), folder)
                engine.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
                assert engine.load_policy("policy").number == version
        return found

    whole, parted = metrics(None, tmp_path / "one"), metrics(3, tmp_path / "two")
    assert [row["sync/version"] for row in whole] == [1, 2, 3, 4, 5]
    assert any("sync/correlation" in row for row in whole[3:])
    assert parted == whole


def test_an_engine_that_does_not_run_the_adapter_again_is_caught_when_it_goes_on(
    shared: SharedBase, folders: FoldersOf, tmp_path: Path
) -> None:
    own = folders("llama")
    engine = _engine(shared, FileBackend(own.base, own.policy), tmp_path)
    engine.load_policy("policy")
    bare = BareBackend(own.base, own.policy)
    bare.calls.append("load v0")  # it forgets what is not its first
    other = _engine(shared, bare, tmp_path)
    other.load_state_dict(engine.state_dict())
    with pytest.raises(SyncError, match="version 1: agreement"):
        other.load_policy("policy")
