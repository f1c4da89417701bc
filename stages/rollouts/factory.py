"""The engine that a configuration names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.errors import ConfigError
from stages.contract import StageContext
from stages.models.config import ModelConfig
from stages.models.dequantized import dequantized_base
from stages.models.shared_base import SharedBase
from stages.ranks import Ranks
from stages.rollouts.adapter_files import AdapterFiles
from stages.rollouts.config import RolloutConfig
from stages.rollouts.contract import AdapterBackend, RolloutEngine
from stages.rollouts.hf_engine import HFEngine
from stages.rollouts.sync_proof import SyncBounds, SyncProof
from stages.rollouts.synced_engine import SyncedEngine


def build_engine(
    config: RolloutConfig,
    model: ModelConfig,
    shared_base: SharedBase,
    *,
    base: Path | str,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    max_prompt_tokens: int,
    context: StageContext,
    ranks: Ranks | None = None,
) -> RolloutEngine:
    """Make an engine; `load_policy` tells it which adapter of the shared base acts.

    Args:
        config: Engine and sampling.
        model: Base and adapter, for the engine's own copy.
        shared_base: The trainer's model.
        base: Folder or hub id of the base.
        tokenizer: For its pad and EOS.
        prompts: What is going to be sampled; the first ones serve as probes of each sync.
        batch_size: Prompts in one call of transformers' `generate`; vLLM batches by itself.
        max_prompt_tokens: Longest prompt, for the size of vLLM's cache.
        context: Folders, device and seed of the stage.
        ranks: Processes of the stage. Default: this one alone.

    Raises:
        ConfigError: The engine is not resolved or not installed.
    """
    ranks = ranks or Ranks()
    if config.engine == "auto":
        raise ConfigError("rollout.engine: `auto` reached a stage; the pipeline resolves it: name `hf` or `vllm`")
    if config.engine == "hf":
        return HFEngine(
            shared_base,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            batch_size=batch_size,
        )
    same_weights = serves_trainer_weights(config, model)
    served = base
    if model.quantization == "nf4" and same_weights:
        served = dequantized_base(base, model, shared_base.device.type, context.config_dir)
    length = max_prompt_tokens + config.max_new_tokens
    adapter_dir = config.server.adapter_dir if config.engine == "vllm_server" else None
    parent = None if adapter_dir is None else Path(adapter_dir).expanduser().absolute()
    files = AdapterFiles(shared_base, model.base, parent, context.scratch_dir, ranks)
    try:
        backend = _backend(
            config,
            model,
            served=served,
            tokenizer=tokenizer,
            max_length=min(length, shared_base.max_positions or length),
            context=context,
            ranks=ranks,
        )
    except BaseException:
        files.close()
        raise
    return SyncedEngine(
        backend,
        shared_base,
        files,
        SyncProof(SyncBounds.of(model.dtype), same_weights=same_weights),
        probe_prompts=prompts[: config.num_probe_prompts],
        pad_token_id=tokenizer.pad_token_id,
        dtype=getattr(torch, model.dtype),
    )


def serves_trainer_weights(config: RolloutConfig, model: ModelConfig) -> bool:
    """Whether engine and trainer compute with the same base weights; not so for the original ones beside NF4."""
    return config.engine == "hf" or model.quantization != "nf4" or config.vllm.base_weights == "trainer"


def _backend(
    config: RolloutConfig,
    model: ModelConfig,
    *,
    served: Path | str,
    tokenizer: Any,
    max_length: int,
    context: StageContext,
    ranks: Ranks,
) -> AdapterBackend:
    if config.engine == "vllm":
        from stages.rollouts.vllm_engine import VLLMBackend

        return VLLMBackend(
            config.vllm,
            model,
            served=served,
            eos_token_id=tokenizer.eos_token_id,
            max_length=max_length,
            seed=context.seed,
            ranks=ranks,
        )
    from stages.rollouts.vllm_server import VLLMServerBackend

    return VLLMServerBackend(
        config.server,
        config.vllm,
        model,
        served=served,
        eos_token_id=tokenizer.eos_token_id,
        max_length=max_length,
        seed=context.seed,
        log_path=context.stage_dir / "vllm.log",
        ranks=ranks,
    )
