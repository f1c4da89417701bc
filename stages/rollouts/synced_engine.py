"""A rollout engine with a base of its own: publish the adapter, load it there, prove that it acts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.collators import left_pad
from stages.models.shared_base import SharedBase
from stages.rollouts.adapter_files import AdapterFiles
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import AdapterBackend, PolicyVersion, PublishedAdapter, Rollout
from stages.rollouts.sync_proof import SyncProof


class SyncedEngine:
    """`RolloutEngine` over an `AdapterBackend`."""

    def __init__(
        self,
        backend: AdapterBackend,
        shared_base: SharedBase,
        files: AdapterFiles,
        proof: SyncProof,
        *,
        probe_prompts: Sequence[Sequence[int]],
        pad_token_id: int,
        dtype: torch.dtype,
    ) -> None:
        """Put the parts together; no policy is loaded yet.

        Args:
            backend: Samples.
            shared_base: The trainer's model.
            files: Carry each version to the backend.
            proof: Judges each sync.
            probe_prompts: Prompts of the kind that is sampled, as token ids.
            pad_token_id: Fills shorter prompts; it never counts.
            dtype: Type in which the engine holds adapters.
        """
        self._backend = backend
        self._shared_base = shared_base
        self._files = files
        self._proof = proof
        self._probe_prompts = [list(prompt) for prompt in probe_prompts]
        self._pad_token_id = pad_token_id
        self._dtype = dtype
        self._current: PublishedAdapter | None = None

    def load_policy(self, role: str) -> PolicyVersion:
        """Send an adapter as it is now, prove that it acts, drop the one before.

        Raises:
            StageError: It does not act.
        """
        sent = self._files.publish(role)
        loaded = self._backend.load_adapter(sent)
        metrics = self._proof.check(
            sent, loaded, self._backend.next_token_logprobs(self._probe_prompts), self._trainer_probe(role)
        )
        if self._current is not None:
            self._backend.unload_adapter(self._current)
            self._files.remove(self._current)
        self._current = sent
        return PolicyVersion(sent.version, sent.digest, metrics)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, *, seeds: Sequence[int]
    ) -> list[Rollout]:
        """Sample one response for each prompt, all in one call.

        Raises:
            ValueError: No policy was loaded.
        """
        if self._current is None:
            raise ValueError("no policy is loaded; call load_policy first")
        return self._backend.sample(prompts, sampling, seeds)

    def state_dict(self) -> dict[str, Any]:
        """The version in use, and what its proof compares with.

        Raises:
            ValueError: No policy was loaded.
        """
        if self._current is None:
            raise ValueError("no policy is loaded; call load_policy first")
        return {"version": self._current.version, "proof": self._proof.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after an engine that is gone."""
        self._files.go_on_before(state["version"])
        self._proof.load_state_dict(state["proof"])

    def close(self) -> None:
        """End the backend and remove the adapters on their way."""
        self._backend.close()
        self._files.close()

    @torch.no_grad()
    def _trainer_probe(self, role: str) -> Float[Tensor, "K V"]:
        """What the trainer computes with the adapter as the engine holds it (see `sync_proof`)."""
        input_ids, attention_mask = left_pad(self._probe_prompts, self._pad_token_id)
        device = self._shared_base.device
        with self._shared_base.role(role), _rounded(self._shared_base.parameters(role), self._dtype):
            return self._shared_base.next_token_logprobs(input_ids.to(device), attention_mask.to(device)).cpu()


@contextmanager
def _rounded(parameters: Sequence[Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Round parameters to a type and give them back their bits at the end. Without gradients only."""
    originals = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.copy_(parameter.to(dtype))
    try:
        yield
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.copy_(original)
