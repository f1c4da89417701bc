"""Rollouts by vLLM in this process, on an adapter that is sent anew after each update.

Each version goes under a new name, a new id and a new path. vLLM caches an adapter by its id and key-value
blocks by name and path: an id used twice keeps the old weights without a word, a path used twice serves stale
blocks.
"""

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before vllm is imported: the engine lives in this process, and nothing is reported to anyone.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest

from data.errors import StageError
from stages.models.config import ModelConfig
from stages.models.dequantized import dequantized_base
from stages.models.shared_base import SharedBase
from stages.models.tuning import save_adapter
from stages.rollouts.config import SamplingConfig, VLLMConfig
from stages.rollouts.contract import Rollout
from stages.seeds import derive_seed

logger = logging.getLogger(__name__)

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_SHARED_MEMORY = Path("/dev/shm")


class VLLMEngine:
    """vLLM with the base loaded once and the policy's adapter swapped."""

    def __init__(
        self,
        config: VLLMConfig,
        model: ModelConfig,
        shared_base: SharedBase,
        *,
        base: Path | str,
        eos_token_id: int,
        max_length: int,
        config_dir: Path | None,
        scratch_dir: Path,
        seed: int,
    ) -> None:
        """Start the engine; no adapter is loaded yet.

        Args:
            config: Memory and speed.
            model: The model section.
            shared_base: The trainer's model, for its adapters.
            base: Folder or hub id of the base.
            eos_token_id: Ends a response.
            max_length: Longest prompt and response, in tokens.
            config_dir: Folder of the configuration file.
            scratch_dir: For adapters on their way, where there is no RAM-backed folder.
            seed: Seed of the engine.
        """
        self._shared_base = shared_base
        self._base_spec = model.base
        self._eos_token_id = eos_token_id
        self._version = 0
        self._request: LoRARequest | None = None
        parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else scratch_dir
        self._folder = Path(tempfile.mkdtemp(prefix="rlhf-adapter-", dir=parent))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(round(config.kv_cache_gib), 1))
        served = base
        if model.quantization == "nf4" and config.base_weights == "trainer":
            served = dequantized_base(base, model, shared_base.device.type, config_dir)
        self._llm: Any = LLM(
            model=str(served),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=model.dtype,
            seed=seed % 2**31,
            enable_lora=True,
            max_loras=1,
            max_cpu_loras=2,
            max_lora_rank=next(rank for rank in _RANKS if rank >= model.tuning.rank),
            max_model_len=min(max_length, shared_base.max_positions or max_length),
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=config.enforce_eager,
            enable_prefix_caching=False,
            # Log-probabilities after the temperature, those of the distribution that is sampled from.
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            disable_log_stats=True,
        )

    @property
    def version(self) -> int:
        """Number of the policy's version in use."""
        return self._version

    def load_policy(self, role: str) -> int:
        """Save an adapter as it is now, load it into the engine, drop the one before."""
        version = self._version + 1
        name = f"{role}-v{version}"
        folder = self._folder / name
        save_adapter(self._shared_base.peft_model, role, folder, base_spec=self._base_spec)
        request = LoRARequest(lora_name=name, lora_int_id=version, lora_path=str(folder))
        if not self._llm.llm_engine.add_lora(request):
            raise StageError(
                f"vLLM did not load adapter {name} from {folder}; a LoRA without DoRA of rank at most {_RANKS[-1]} "
                f"is needed: see vLLM's log, or use `rollout.engine: hf`"
            )
        if self._request is not None:
            self._llm.llm_engine.remove_lora(self._request.lora_int_id)
            shutil.rmtree(self._request.lora_path)
        self._request, self._version = request, version
        return version

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, *, seed: int) -> list[Rollout]:
        """Sample one response for each prompt, all in one call.

        Raises:
            ValueError: No policy was loaded.
        """
        if self._request is None:
            raise ValueError("no policy is loaded; call load_policy first")
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            [
                SamplingParams(
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_new_tokens,
                    stop_token_ids=[self._eos_token_id],
                    logprobs=0,
                    seed=derive_seed(seed, "row", row),
                    detokenize=False,
                )
                for row in range(len(prompts))
            ],
            lora_request=self._request,
            use_tqdm=False,
        )
        return [self._rollout(prompt, output.outputs[0]) for prompt, output in zip(prompts, outputs, strict=True)]

    def close(self) -> None:
        """Free the engine and the adapters on their way."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rollout(self, prompt: Sequence[int], completion: Any) -> Rollout:
        ids = tuple(completion.token_ids)
        logprobs = tuple(float(step[token].logprob) for token, step in zip(ids, completion.logprobs, strict=True))
        return Rollout(tuple(prompt), ids, logprobs, finished=ids[-1] == self._eos_token_id)
