"""Rollouts by transformers' `generate` on the trainer's own weights: slow, and the oracle for the others.

The engine's log-probabilities come from the decoding pass with its key-value cache; the trainer's from one
pass over the whole sequence. In float32 they agree to rounding; their gap is logged like any engine's.

Shape legend: B = rows, P = prompt tokens, V = vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from data.collators import left_pad
from stages.models.shared_base import SharedBase
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import PolicyVersion, Rollout

_DRAW_BLOCK = 256


class HFEngine:
    """Generates with one role of the shared base, so a new policy needs no sending."""

    def __init__(self, shared_base: SharedBase, *, pad_token_id: int, eos_token_id: int, batch_size: int) -> None:
        """Keep what `generate` needs.

        Args:
            shared_base: The model.
            pad_token_id: Fills prompts on the left and finished responses on the right.
            eos_token_id: Ends a response.
            batch_size: Prompts in one call of `generate`.
        """
        self._base = shared_base
        self._role: str | None = None
        self._pad_token_id = pad_token_id
        self._eos_token_id = eos_token_id
        self._batch_size = batch_size
        self._version = 0

    def load_policy(self, role: str) -> PolicyVersion:
        """Act with another role, and count one version on: the weights are the trainer's own."""
        self._role = role
        self._version += 1
        return PolicyVersion(self._version)

    def state_dict(self) -> dict[str, Any]:
        """The version in use."""
        return {"version": self._version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from there."""
        self._version = state["version"] - 1

    def close(self) -> None:
        """Nothing is held beside the shared base."""

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, *, seeds: Sequence[int]
    ) -> list[Rollout]:
        """Sample one response for each prompt; torch's own random state is neither read nor moved."""
        rollouts: list[Rollout] = []
        for start in range(0, len(prompts), self._batch_size):
            rows = slice(start, start + self._batch_size)
            rollouts += self._generate_batch(prompts[rows], sampling, seeds[rows])
        return rollouts

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Rollout]:
        input_ids, attention_mask = left_pad(prompts, self._pad_token_id)
        sampler = _Sampler(sampling, seeds, self._base.device)
        with self._base.role(self._role):
            sequences = self._base.generate(
                input_ids.to(self._base.device),
                attention_mask.to(self._base.device),
                generation_config=GenerationConfig(
                    do_sample=False,  # the sampler leaves one token only
                    max_new_tokens=sampling.max_new_tokens,
                    eos_token_id=self._eos_token_id,
                    pad_token_id=self._pad_token_id,
                ),
                logits_processor=LogitsProcessorList([sampler]),
            )
        responses = sequences[:, input_ids.shape[1] :]
        logprobs = torch.stack(sampler.logprobs, dim=1)
        return [
            self._rollout(prompt, ids, values)
            for prompt, ids, values in zip(prompts, responses.tolist(), logprobs.tolist(), strict=True)
        ]

    def _rollout(self, prompt: Sequence[int], ids: list[int], logprobs: list[float]) -> Rollout:
        finished = self._eos_token_id in ids
        length = ids.index(self._eos_token_id) + 1 if finished else len(ids)
        return Rollout(tuple(prompt), tuple(ids[:length]), tuple(logprobs[:length]), finished)


class _Sampler(LogitsProcessor):  # type: ignore[misc]
    """Draws each token by the inverse of the cumulative distribution, and remembers its log-probability.

    Every row has a random stream of its own, so a response does not depend on what it is batched with; one
    uniform number a token is all that is drawn, where `torch.multinomial` draws one for each token of the
    vocabulary (110 of 200 ms a step for 96 rows of 49152 on two cores).
    """

    def __init__(self, sampling: SamplingConfig, seeds: Sequence[int], device: torch.device) -> None:
        self._temperature = sampling.temperature
        draws = [
            torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
        self._draws = torch.stack(draws, dim=1).to(device)  # [T B]
        self.logprobs: list[Float[Tensor, " B"]] = []

    def __call__(self, input_ids: Int[Tensor, "B S"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Rule out every token but the drawn one."""
        logprobs = torch.log_softmax(scores.float() / self._temperature, dim=-1)
        drawn = draw_by_inverse(logprobs.exp(), self._draws[len(self.logprobs)])
        self.logprobs.append(logprobs.gather(1, drawn).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def draw_by_inverse(probabilities: Float[Tensor, "B V"], draws: Float[Tensor, " B"]) -> Int[Tensor, "B 1"]:
    """The token at which each row's cumulative distribution passes a uniform number.

    First the block of tokens is found, then the token in it: running sums in float64 over the whole vocabulary took
    a tenth of the time of generating.

    Args:
        probabilities: Of each token; a row's sum need not be exactly 1.
        draws: A uniform number in [0, 1) for each row, in float64.
    """
    rows, size = probabilities.shape
    blocks = nn.functional.pad(probabilities, (0, -size % _DRAW_BLOCK)).view(rows, -1, _DRAW_BLOCK)
    ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    threshold = _below(draws.unsqueeze(1) * ends[:, -1:], ends[:, -1:])
    block = torch.searchsorted(ends, threshold, right=True)
    within = blocks[torch.arange(rows, device=block.device), block.squeeze(1)].cumsum(dim=-1, dtype=torch.float64)
    before = nn.functional.pad(ends, (1, 0)).gather(1, block)
    token = torch.searchsorted(within, _below(threshold - before, within[:, -1:]), right=True)
    return block * _DRAW_BLOCK + token


def _below(values: Float[Tensor, "B 1"], ends: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
    """Values that rounding has carried to the end are put before it, so that no token of probability 0 is drawn."""
    return values.minimum(torch.nextafter(ends, torch.zeros_like(ends)))
