"""vLLM in this process, as a backend for adapters that are sent anew after each update."""

import gc
import os
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
from stages.ranks import Ranks
from stages.rollouts.adapter_files import folder_digest
from stages.rollouts.config import SamplingConfig, VLLMConfig
from stages.rollouts.contract import LoadedAdapter, PublishedAdapter, Rollout
from stages.rollouts.vllm_limits import MAX_LOGPROBS, max_lora_rank


class VLLMBackend:
    """vLLM with the base loaded once and one adapter in use."""

    def __init__(
        self,
        config: VLLMConfig,
        model: ModelConfig,
        *,
        served: Path | str,
        eos_token_id: int,
        max_length: int,
        seed: int,
        ranks: Ranks,
    ) -> None:
        """Start the engine; no adapter is loaded yet.

        Args:
            config: Memory and speed.
            model: The model section.
            served: Folder or hub id of the base's weights.
            eos_token_id: Ends a response.
            max_length: Longest prompt and response, in tokens.
            seed: Seed of the engine.
            ranks: Processes of the stage; each has an engine.
        """
        self._eos_token_id = eos_token_id
        self._request: LoRARequest | None = None
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(round(config.kv_cache_gib), 1))
        self._llm: Any = LLM(
            model=str(served),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=model.dtype,
            # Several engines live side by side in the process group that the trainer has opened.
            distributed_executor_backend="external_launcher" if ranks.size > 1 else None,
            seed=seed % 2**31,
            enable_lora=True,
            max_loras=1,
            max_cpu_loras=2,
            max_lora_rank=max_lora_rank(model.tuning.rank),
            max_model_len=max_length,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=config.enforce_eager,
            enable_prefix_caching=config.prefix_caching,
            # Log-probabilities after the temperature, those of the distribution that is sampled from.
            logprobs_mode="processed_logprobs",
            max_logprobs=MAX_LOGPROBS,
            generation_config="vllm",
            disable_log_stats=True,
        )

    def load_adapter(self, adapter: PublishedAdapter) -> LoadedAdapter:
        """Load a version under its number as id."""
        request = LoRARequest(lora_name=adapter.name, lora_int_id=adapter.version, lora_path=str(adapter.folder))
        engine = self._llm.llm_engine
        if not engine.add_lora(request) or adapter.version not in engine.list_loras():
            raise StageError(
                f"vLLM did not load adapter {adapter.name} from {adapter.folder}; a LoRA without DoRA of a rank that "
                f"it was started for is needed: see vLLM's log, or use `rollout.engine: hf`"
            )
        self._request = request
        return LoadedAdapter(request.lora_name, request.lora_path, folder_digest(Path(request.lora_path)))

    def unload_adapter(self, adapter: PublishedAdapter) -> None:
        """Free a version's place."""
        self._llm.llm_engine.remove_lora(adapter.version)

    def sample(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]) -> list[Rollout]:
        """Sample one response for each prompt, all in one call."""
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=[self._eos_token_id],
                ignore_eos=True,  # the base's own; it may be another one than the tokenizer's
                logprobs=0,
                seed=seed,
                detokenize=False,
            )
            for seed in seeds
        ]
        outputs = self._generate(prompts, parameters)
        return [self._rollout(prompt, output.outputs[0]) for prompt, output in zip(prompts, outputs, strict=True)]

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """The likeliest next tokens of each prompt, by generating one."""
        parameters = SamplingParams(temperature=1.0, max_tokens=1, logprobs=MAX_LOGPROBS, seed=0, detokenize=False)
        outputs = self._generate(prompts, [parameters] * len(prompts))
        return [
            {int(token): float(value.logprob) for token, value in output.outputs[0].logprobs[0].items()}
            for output in outputs
        ]

    def close(self) -> None:
        """Free the engine."""
        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _generate(self, prompts: Sequence[Sequence[int]], parameters: list[SamplingParams]) -> list[Any]:
        outputs: list[Any] = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            parameters,
            lora_request=self._request,
            use_tqdm=False,
        )
        return outputs

    def _rollout(self, prompt: Sequence[int], completion: Any) -> Rollout:
        ids = tuple(completion.token_ids)
        logprobs = tuple(float(step[token].logprob) for token, step in zip(ids, completion.logprobs, strict=True))
        return Rollout(tuple(prompt), ids, logprobs, finished=ids[-1] == self._eos_token_id)
