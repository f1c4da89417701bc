"""A rollout engine with a base of its own: publish the adapter, load it there, prove that it acts.

An engine whose process dies is started again, once: the policy of the moment is sent to it and proven like any other
version, and what it was asked for is asked for again. Seeds belong to rows, so that the responses are the same.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from data.collators import left_pad
from data.errors import StageError
from stages.models.shared_base import SharedBase
from stages.rollouts.adapter_files import AdapterFiles
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import AdapterBackend, EngineDiedError, PolicyVersion, PublishedAdapter, Rollout
from stages.rollouts.sync_proof import SyncProof

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_RESTARTS = 1
"""One may be an accident; an engine that dies twice has a reason, which a third one would not be without."""


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
        self._version: int | None = None
        self._role: str | None = None
        self._num_restarts = 0

    def load_policy(self, role: str) -> PolicyVersion:
        """Send an adapter as it is now, prove that it acts, drop the one before.

        Returns:
            The version, with `sync/*` and `rollout/engine_restarts`.

        Raises:
            StageError: It does not act, or the engine died twice.
        """
        self._role = role
        version = self._surviving(lambda: self._send(role))
        restarts = {"rollout/engine_restarts": float(self._num_restarts)}
        return PolicyVersion(version.number, version.digest, {**version.metrics, **restarts})

    def _send(self, role: str) -> PolicyVersion:
        sent = self._files.publish(role)
        loaded = self._backend.load_adapter(sent)
        metrics = self._proof.check(
            sent, loaded, self._backend.next_token_logprobs(self._probe_prompts), self._trainer_probe(role)
        )
        if self._current is not None:
            self._backend.unload_adapter(self._current)
            self._files.remove(self._current)
        self._current, self._version = sent, sent.version
        return PolicyVersion(sent.version, sent.digest, metrics)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, *, seeds: Sequence[int]
    ) -> list[Rollout]:
        """Sample one response for each prompt, all in one call.

        Raises:
            ValueError: No policy was loaded.
            StageError: The engine failed for good.
        """
        role = self._role
        if role is None:
            raise ValueError("no policy is loaded; call load_policy first")

        def sample() -> list[Rollout]:
            if self._current is None:  # an engine that was started again; the adapter has not changed since
                self._send(role)
            return self._backend.sample(prompts, sampling, seeds)

        return self._surviving(sample)

    def _surviving(self, act: Callable[[], Result]) -> Result:
        """Do something again with a new engine where the old one dies of it."""
        while True:
            try:
                return act()
            except EngineDiedError as error:
                self._restart(error)

    def _restart(self, error: EngineDiedError) -> None:
        """Have a new engine in place of the one that died, with nothing loaded.

        Raises:
            StageError: It is not the first that died.
        """
        if self._num_restarts >= MAX_RESTARTS:
            raise StageError(
                f"rollout.engine: the engine died again after it had been started anew; an engine that keeps running "
                f"is needed: {error}"
            ) from error
        self._num_restarts += 1
        logger.warning("the rollout engine died and is started again: %s", error)
        error.restart()
        if self._current is not None:
            self._files.remove(self._current)
            self._current = None

    def state_dict(self) -> dict[str, Any]:
        """The version that was proven last, though its engine may have died since, and what proofs compare with.

        Raises:
            ValueError: No policy was loaded.
        """
        if self._version is None:
            raise ValueError("no policy is loaded; call load_policy first")
        return {"version": self._version, "proof": self._proof.state_dict()}

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
