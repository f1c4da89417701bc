"""What an engine that generates responses is. Trainers see this protocol and no engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stages.rollouts.config import SamplingConfig


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


class RolloutEngine(Protocol):
    """Generates responses with the policy that it was given last."""

    @property
    def version(self) -> int:
        """Number of the policy's version in use, counted from 0 by `load_policy`."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, *, seed: int) -> list[Rollout]:
        """Sample one response for each prompt.

        Args:
            prompts: Token ids, none of them empty.
            sampling: Longest response and temperature; neither top-k nor top-p.
            seed: Everything random in the call derives from it.
        """
        ...

    def load_policy(self, role: str) -> int:
        """Take over one adapter of the trainer as it is now, and act with it; returns the new version."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
