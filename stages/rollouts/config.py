"""How responses are sampled, and by which engine. Imports pydantic only."""

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from data.strict import Contradiction, EnvironmentName, Flag, PathText, Printable, Section, StrictModel, differs


class SamplingConfig(Section):
    """Sampling without top-k or top-p, so that log-probabilities are those of the sampled distribution."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Longest response, in tokens, EOS included."""

    temperature: float = Field(default=1.0, ge=0.01)
    """Divides the logits, in sampling and in every log-probability of the stage. vLLM samples at 0.01 where less is
    asked for, and log-probabilities overflow soon below."""


class VLLMConfig(StrictModel):
    """Settings of a vLLM engine that the stage starts, in its process or as a server."""

    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the key-value cache on the CPU, in GiB."""

    gpu_memory_utilization: float = Field(default=0.35, gt=0, lt=1)
    """Share of the GPU's memory for vLLM: the trainer on the same GPU needs the rest."""

    enforce_eager: Flag = True
    """No CUDA graphs. Starts faster and takes less memory."""

    prefix_caching: Flag = False
    """Keep key-value blocks of equal beginnings of prompts. Pays where a prompt has several responses."""

    base_weights: Literal["trainer", "original"] = "trainer"
    """Under NF4: serve the dequantised weights that the trainer computes with, or the original ones."""


_ADDRESS = re.compile(r"https?://[^/@?#\s]+(/[^@?#\s]*)?")


class VLLMServerConfig(StrictModel):
    """`vllm serve`, spoken to over HTTP. Without `address` the stage starts one on this machine and ends it."""

    address: Printable | None = None
    """Of a server that runs already, `http://host:8000`. It has to be started with
    `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --logprobs-mode processed_logprobs`."""

    api_key_env: EnvironmentName = "VLLM_API_KEY"
    """Environment variable that holds the server's API key. The key itself never enters a configuration."""

    adapter_dir: PathText | None = None
    """Folder for adapters that the server can read under the same path. Default: RAM-backed storage of this machine."""

    startup_timeout_seconds: float = Field(default=600.0, gt=0)
    """How long the stage waits for a server that it started."""

    request_timeout_seconds: float = Field(default=300.0, gt=0)
    """How long it waits for one answer."""

    max_retries: int = Field(default=6, ge=0)
    """How often a request is sent again that the server did not answer or was not ready for: after 1, 2, 4, 8, 16
    seconds and then each 30. A server of the stage's own that has died is started again instead, once."""

    max_parallel_requests: int = Field(default=64, ge=1)
    """Requests under way at a time; vLLM batches them."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None and not _ADDRESS.fullmatch(address):
            raise ValueError(f"found {address!r}, must be an address without a key in it; write it as http://host:8000")
        return address


ImportanceSampling = Literal["auto", "off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class RolloutConfig(SamplingConfig):
    """Sampling of PPO's rollouts and the engine that does it."""

    engine: Literal["auto", "hf", "vllm", "vllm_server"] = "auto"
    """`hf` generates with the trainer's own weights, `vllm` in this process, `vllm_server` by `vllm serve`; `auto` is
    `vllm` on a GPU where it is installed, else `hf`."""

    vllm: VLLMConfig = VLLMConfig()

    server: VLLMServerConfig = VLLMServerConfig()

    num_probe_prompts: int = Field(default=16, ge=2)
    """Prompts on which each sync of an adapter to vLLM is proven."""

    max_logprob_delta_rms: float = Field(default=0.2, gt=0)
    """The stage ends when trainer and engine disagree on the sampled tokens by more than this (nats, RMS)."""

    importance_sampling: ImportanceSampling = "auto"
    """How the gap between trainer and engine is corrected: weights `pi_trainer / pi_engine` a token or a response,
    truncated at `importance_cap`, or 0 above it. `auto` is `token_truncate` with vLLM, `off` with `hf`."""

    importance_cap: float = Field(default=2.0, gt=1.0)
    """Upper bound of the importance weights."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Settings of an engine that does not run."""
        server = [f"server.{name}" for name in VLLMServerConfig.model_fields if differs(self.server, name)]
        if server and self.engine != "vllm_server":
            yield Contradiction(
                (*server, "engine"),
                f"{', '.join(server)} {'is' if len(server) == 1 else 'are'} set, but engine={self.engine} speaks to no "
                f"server; remove `server`, or use `engine: vllm_server`",
            )
        vllm = [f"vllm.{name}" for name in VLLMConfig.model_fields if differs(self.vllm, name)]
        if vllm and self.engine == "hf":
            yield Contradiction(
                (*vllm, "engine"),
                f"{', '.join(vllm)} {'is' if len(vllm) == 1 else 'are'} set, but engine=hf starts no vLLM; remove "
                f"`vllm`, or use `engine: vllm`",
            )

    @property
    def correction(self) -> tuple[Literal["token", "sequence"], Literal["truncate", "mask"]] | None:
        """Level and mode of `importance_sampling` with `auto` resolved; None is no correction."""
        match self.importance_sampling:
            case "token_truncate":
                return "token", "truncate"
            case "token_mask":
                return "token", "mask"
            case "sequence_truncate":
                return "sequence", "truncate"
            case "sequence_mask":
                return "sequence", "mask"
            case "auto" if self.engine != "hf":
                return "token", "truncate"
            case _:
                return None
