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
from stages.rollouts.contract import Rollout


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

    @property
    def version(self) -> int:
        """Number of the policy's version in use."""
        return self._version

    def load_policy(self, role: str) -> int:
        """Act with another role, and count one version on: the weights are the trainer's own."""
        self._role = role
        self._version += 1
        return self._version

    def close(self) -> None:
        """Nothing is held beside the shared base."""

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, *, seed: int) -> list[Rollout]:
        """Sample one response for each prompt; the random state outside is left as it was."""
        devices = [self._base.device] if self._base.device.type == "cuda" else []
        rollouts: list[Rollout] = []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), self._batch_size):
                rollouts += self._generate_batch(prompts[start : start + self._batch_size], sampling)
        return rollouts

    def _generate_batch(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Rollout]:
        input_ids, attention_mask = left_pad(prompts, self._pad_token_id)
        recorder = _LogprobRecorder(sampling.temperature)
        with self._base.role(self._role):
            sequences = self._base.generate(
                input_ids.to(self._base.device),
                attention_mask.to(self._base.device),
                generation_config=GenerationConfig(
                    do_sample=True,
                    temperature=1.0,  # the recorder divides, so that it sees what is sampled from
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=sampling.max_new_tokens,
                    eos_token_id=self._eos_token_id,
                    pad_token_id=self._pad_token_id,
                ),
                logits_processor=LogitsProcessorList([recorder]),
            )
        responses = sequences[:, input_ids.shape[1] :]
        logprobs = recorder.finish(responses)
        return [
            self._rollout(prompt, ids, values)
            for prompt, ids, values in zip(prompts, responses.tolist(), logprobs.tolist(), strict=True)
        ]

    def _rollout(self, prompt: Sequence[int], ids: list[int], logprobs: list[float]) -> Rollout:
        finished = self._eos_token_id in ids
        length = ids.index(self._eos_token_id) + 1 if finished else len(ids)
        return Rollout(tuple(prompt), tuple(ids[:length]), tuple(logprobs[:length]), finished)


class _LogprobRecorder(LogitsProcessor):  # type: ignore[misc]
    """Divides logits by the temperature and remembers the log-probability of each token that was drawn.

    At each step the token of the step before is known, so one step's log-probabilities are enough: [B V]
    lives, never [B T V].
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._last: Float[Tensor, "B V"] | None = None
        self._drawn: list[Float[Tensor, " B"]] = []

    def __call__(self, input_ids: Int[Tensor, "B S"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        if self._last is not None:
            self._drawn.append(_picked(self._last, input_ids[:, -1]))
        scores = scores.float() / self._temperature
        self._last = torch.log_softmax(scores, dim=-1)
        return scores

    def finish(self, responses: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """All log-probabilities, those of the last step included."""
        assert self._last is not None
        return torch.stack([*self._drawn, _picked(self._last, responses[:, -1])], dim=1)


def _picked(logprobs: Float[Tensor, "B V"], ids: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    return logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
