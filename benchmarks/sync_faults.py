"""Faults of a rollout engine, injected into the real vLLM: what a sync of adapters can get wrong.

Each fault stands between `SyncedEngine` and a `VLLMBackend` and is at work from one version on. Most of them lie:
they report the name, path and digest that were sent, so that only the engine's behaviour can give them away. Shared
by the benchmark and by the integration tests.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vllm.lora.request import LoRARequest

from stages.models.adapters import ADAPTER_WEIGHTS
from stages.rollouts.adapter_files import AdapterFiles, folder_digest
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import LoadedAdapter, PublishedAdapter, Rollout
from stages.rollouts.vllm_engine import VLLMBackend

SaveRole = Callable[[str, Path], None]
"""Saves a role's adapter as it is now into a folder."""


class HealthyBackend:
    """Passes everything on."""

    def __init__(self, backend: VLLMBackend, *, since: int = 1) -> None:
        """Stand before a backend that goes on living.

        Args:
            backend: The engine.
            since: First version at which the fault is at work.
        """
        self.backend = backend
        self._since = since

    def load_adapter(self, adapter: PublishedAdapter) -> LoadedAdapter:
        """Load as it should be before the fault sets in, then in the fault's way."""
        if adapter.version < self._since:
            return self._load_healthy(adapter)
        return self._load(adapter)

    def unload_adapter(self, adapter: PublishedAdapter) -> None:
        """Pass on."""
        self.backend.unload_adapter(adapter)

    def sample(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]) -> list[Rollout]:
        """Pass on."""
        return self.backend.sample(prompts, sampling, seeds)

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Pass on."""
        return self.backend.next_token_logprobs(prompts)

    def close(self) -> None:
        """Forget all adapters and cached blocks; the engine itself serves the next case."""
        engine = self.backend._llm.llm_engine
        for number in list(engine.list_loras()):
            engine.remove_lora(number)
        engine.reset_prefix_cache()
        self.backend._request = None

    def _load_healthy(self, adapter: PublishedAdapter) -> LoadedAdapter:
        return self.backend.load_adapter(adapter)

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        return self._load_healthy(adapter)

    def _serve(self, request: LoRARequest) -> None:
        """Load what a request says and let all that follows run on it."""
        if not self.backend._llm.llm_engine.add_lora(request):
            raise RuntimeError(f"vLLM refused {request}")
        self.backend._request = request


class StaleBackend(HealthyBackend):
    """Every version comes under the id of the one before the fault: vLLM keeps the weights that it has."""

    def unload_adapter(self, adapter: PublishedAdapter) -> None:
        """Keep the only id in use."""
        if adapter.version < self._since - 1:
            super().unload_adapter(adapter)

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        self._serve(LoRARequest(adapter.name, self._since - 1, str(adapter.folder)))
        return LoadedAdapter(adapter.name, str(adapter.folder), folder_digest(adapter.folder))


class SwappedBackend(HealthyBackend):
    """Another role's adapter, as it is at that moment, under our name."""

    def __init__(self, backend: VLLMBackend, save_role: SaveRole, role: str, folder: Path, *, since: int = 1) -> None:
        """Keep the other adapter's versions in `folder`."""
        super().__init__(backend, since=since)
        self._save_role, self._role, self._folder = save_role, role, folder

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        folder = self._folder / adapter.name
        self._save_role(self._role, folder)
        self._serve(LoRARequest(adapter.name, adapter.version, str(folder)))
        return LoadedAdapter(adapter.name, str(adapter.folder), folder_digest(adapter.folder))


class HonestlySwappedBackend(SwappedBackend):
    """The same, but what is reported is what was read."""

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        super()._load(adapter)
        folder = self._folder / adapter.name
        return LoadedAdapter(adapter.name, str(folder), folder_digest(folder))


class LaggingBackend(HealthyBackend):
    """The version that is `lag` versions old, under our name, with an id and a path of its own."""

    def __init__(self, backend: VLLMBackend, folder: Path, *, lag: int, since: int) -> None:
        """Keep copies of all versions in `folder`."""
        super().__init__(backend, since=since)
        self._folder, self._lag = folder, lag

    def load_adapter(self, adapter: PublishedAdapter) -> LoadedAdapter:
        """Keep a copy, then load."""
        shutil.copytree(adapter.folder, self._folder / str(adapter.version))
        return super().load_adapter(adapter)

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        old = self._folder / str(max(adapter.version - self._lag, 1))
        self._serve(LoRARequest(adapter.name, adapter.version, str(old)))
        return LoadedAdapter(adapter.name, str(adapter.folder), folder_digest(adapter.folder))


class ChangedFileBackend(HealthyBackend):
    """Changes the file on its way, before the engine reads it."""

    def __init__(self, backend: VLLMBackend, change: Callable[[Path], None], *, since: int = 1) -> None:
        """Apply `change` to the file of the weights."""
        super().__init__(backend, since=since)
        self._change = change

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        self._change(adapter.folder / ADAPTER_WEIGHTS)
        return self._load_healthy(adapter)


class RestoredFileBackend(ChangedFileBackend):
    """Changes the file and restores it once the engine has read it, as if memory had gone bad: no digest sees it."""

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        weights = adapter.folder / ADAPTER_WEIGHTS
        original = weights.read_bytes()
        super()._load(adapter)
        weights.write_bytes(original)
        return LoadedAdapter(adapter.name, str(adapter.folder), folder_digest(adapter.folder))


class NoAdapterBackend(HealthyBackend):
    """Loads the adapter and forgets to name it in the requests."""

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        loaded = self._load_healthy(adapter)
        self.backend._request = None
        return loaded


class PathReusedBackend(HealthyBackend):
    """Each version is copied over the one before, under one name, id and path, loaded in place.

    vLLM's cached key-value blocks are keyed by name and path: those of the version before stay in use.
    """

    _ID = 10**6

    def __init__(self, backend: VLLMBackend, folder: Path, *, since: int = 1) -> None:
        """Use `folder` for every version."""
        super().__init__(backend, since=since)
        self._folder = folder

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in adapter.folder.iterdir():
            shutil.copyfile(file, self._folder / file.name)
        self._serve(LoRARequest("policy", self._ID, str(self._folder), load_inplace=True))
        # Named again in each request: with `load_inplace` there vLLM would read the file again each time.
        self.backend._request = LoRARequest("policy", self._ID, str(self._folder))
        return LoadedAdapter(adapter.name, str(adapter.folder), folder_digest(adapter.folder))

    def unload_adapter(self, adapter: PublishedAdapter) -> None:
        """Leave the one id in use."""


class HonestPathReusedBackend(PathReusedBackend):
    """The same, but the path that is reported is the one that was read."""

    def _load(self, adapter: PublishedAdapter) -> LoadedAdapter:
        super()._load(adapter)
        return LoadedAdapter(adapter.name, str(self._folder), folder_digest(self._folder))


class PathReusingFiles(AdapterFiles):
    """Publishes every version under the name and path of the first; the fault is the trainer's own."""

    def publish(self, role: str) -> PublishedAdapter:
        """Write over the version before."""
        published = super().publish(role)
        fixed = self.folder / "policy"
        shutil.rmtree(fixed, ignore_errors=True)
        published.folder.rename(fixed)
        return replace(published, name="policy", folder=fixed)


def zero_b(weights: Path) -> None:
    """Put every B of a saved adapter to 0: it then changes nothing."""
    state = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})


def flip_last_byte(weights: Path) -> None:
    """Change one bit of the last weight."""
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1  # the lowest bit of a float32: nothing but the digest can see it
    weights.write_bytes(bytes(data))
