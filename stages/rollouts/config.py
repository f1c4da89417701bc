"""How responses are sampled, and by which engine. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from data.strict import StrictModel


class SamplingConfig(StrictModel):
    """Sampling without top-k or top-p, so that log-probabilities are those of the sampled distribution."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Longest response, in tokens, EOS included."""

    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits, in sampling and in every log-probability of the stage."""


class VLLMConfig(StrictModel):
    """Settings of the vLLM engine in this process."""

    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the key-value cache on the CPU, in GiB."""

    gpu_memory_utilization: float = Field(default=0.35, gt=0, lt=1)
    """Share of the GPU's memory for vLLM: the trainer on the same GPU needs the rest."""

    enforce_eager: bool = True
    """No CUDA graphs. Starts faster and takes less memory."""

    base_weights: Literal["trainer", "original"] = "trainer"
    """Under NF4: serve the dequantised weights that the trainer computes with, or the original ones."""


class RolloutConfig(SamplingConfig):
    """Sampling of PPO's rollouts and the engine that does it."""

    engine: Literal["auto", "hf", "vllm"] = "auto"
    """`hf` generates with the trainer's own weights; `auto` is `vllm` on a GPU where it is installed, else `hf`."""

    vllm: VLLMConfig = VLLMConfig()

    max_logprob_delta_rms: float = Field(default=0.2, gt=0)
    """The stage ends when trainer and engine disagree on the sampled tokens by more than this (nats, RMS)."""

    importance_cap: float = Field(default=2.0, gt=1.0)
    """Upper bound of the truncated importance weights `pi_trainer / pi_engine` (only with `vllm`)."""
