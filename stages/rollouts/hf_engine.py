"""Rollouts by transformers' `generate` on the trainer's own weights: slow, and the oracle for the others.

The engine's log-probabilities come from the decoding pass with its key-value cache; the trainer's from one
pass over the whole sequence. In float32 they agree to rounding; their gap is logged like any engine's.

Shape legend: B = rows, P = prompt tokens, V = vocabulary.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from data.collators import left_pad
from stages.models.shared_base import SharedBase
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import PolicyVersion, Rollout


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
        cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
        threshold = self._draws[len(self.logprobs)].unsqueeze(1) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, threshold, right=True).clamp(max=scores.shape[1] - 1)
        self.logprobs.append(logprobs.gather(1, drawn).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)
