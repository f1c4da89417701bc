"""What an engine that generates responses is. Trainers see `RolloutEngine` and no engine.

An engine that has the base in a place of its own (another process, another copy) is made of three parts: an
`AdapterBackend` that loads adapters and samples, the files that carry each version there
(`stages.rollouts.adapter_files`), and the proof that the version loaded is the one that was sent
(`stages.rollouts.sync_proof`). `stages.rollouts.synced_engine` puts them together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data.errors import StageError
from stages.rollouts.config import SamplingConfig


class EngineDiedError(StageError):
    """An engine's process has ended, and a new one can take its place. All ranks raise it together."""

    def __init__(self, message: str, restart: Callable[[], None]) -> None:
        """Keep what starts a new one.

        Args:
            message: How the old one ended, and what to do.
            restart: Starts an engine in its place, with no adapter loaded; raises `StageError` where that fails.
        """
        super().__init__(message)
        self.restart = restart


@dataclass(frozen=True)
class Rollout:
    """One response as an engine made it.

    Attributes:
        prompt_ids: The prompt.
        response_ids: The response; its last token is EOS if it ended by itself.
        logprobs: Log-probability of each response token as the engine sampled it, at the sampling
            temperature, in nats.
        finished: Whether it ended with EOS; False where the length limit cut it off.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


@dataclass(frozen=True)
class PolicyVersion:
    """A version of the policy in use.

    Attributes:
        number: Counted from 1.
        digest: SHA-256 of the adapter that was sent; None where the engine acts with the trainer's own weights.
        metrics: `sync/*`, what the proof of this version measured.
    """

    number: int
    digest: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class RolloutEngine(Protocol):
    """Generates responses with the policy that it was given last."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, *, seeds: Sequence[int]
    ) -> list[Rollout]:
        """Sample one response for each prompt.

        Args:
            prompts: Token ids, none of them empty.
            sampling: Longest response and temperature; neither top-k nor top-p.
            seeds: One for each prompt; a response is a function of its prompt, the policy and its seed, but for
                the rounding of an engine that batches.
        """
        ...

    def load_policy(self, role: str) -> PolicyVersion:
        """Take over one adapter of the trainer as it is now, and act with it.

        Raises:
            StageError: The engine does not run the adapter that was sent.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What another engine of the same settings needs to go on after this one; tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the engine that gave this state: the next `load_policy` brings its last version once more."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


@dataclass(frozen=True)
class PublishedAdapter:
    """One version of an adapter as files, to be loaded by a backend.

    Attributes:
        version: Counted from 1.
        name: Of this version alone.
        folder: Of this version alone; PEFT's files at its root.
        digest: SHA-256 of the files.
    """

    version: int
    name: str
    folder: Path
    digest: str


@dataclass(frozen=True)
class LoadedAdapter:
    """What a backend says that it has loaded.

    Attributes:
        name: Name under which requests reach it.
        path: Folder that the backend read.
        digest: SHA-256 of the files there after they were read.
    """

    name: str
    path: str
    digest: str


class AdapterBackend(Protocol):
    """An inference engine with the base loaded once, in which adapters come and go."""

    def load_adapter(self, adapter: PublishedAdapter) -> LoadedAdapter:
        """Load a version and let all that follows run on it.

        Raises:
            StageError: It was refused.
        """
        ...

    def unload_adapter(self, adapter: PublishedAdapter) -> None:
        """Forget a version that is no longer in use."""
        ...

    def sample(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]) -> list[Rollout]:
        """Sample one response for each prompt with the version loaded last."""
        ...

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Log-probabilities, at temperature 1, of the likeliest next tokens of each prompt by token id.

        By the same way that samples take, so that whatever is wrong with those (a stale cache, for one) shows
        here. vLLM's `prompt_logprobs` would not do: they never read the prefix cache.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds."""
        ...
