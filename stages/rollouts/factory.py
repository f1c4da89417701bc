"""The engine that a configuration names."""

from pathlib import Path

from data.errors import ConfigError
from stages.models.config import ModelConfig
from stages.models.shared_base import SharedBase
from stages.rollouts.config import RolloutConfig
from stages.rollouts.contract import RolloutEngine
from stages.rollouts.hf_engine import HFEngine


def build_engine(
    config: RolloutConfig,
    model: ModelConfig,
    shared_base: SharedBase,
    *,
    base: Path | str,
    pad_token_id: int,
    eos_token_id: int,
    batch_size: int,
    max_prompt_tokens: int,
    config_dir: Path | None,
    scratch_dir: Path,
    seed: int,
) -> RolloutEngine:
    """Make an engine; `load_policy` tells it which adapter of the shared base acts.

    Args:
        config: Engine and sampling.
        model: Base and adapter, for the engine's own copy.
        shared_base: The trainer's model.
        base: Folder or hub id of the base.
        pad_token_id: Fills shorter rows.
        eos_token_id: Ends a response.
        batch_size: Prompts in one call of transformers' `generate`; vLLM batches by itself.
        max_prompt_tokens: Longest prompt, for the size of vLLM's cache.
        config_dir: Folder of the configuration file.
        scratch_dir: For adapters on their way to an engine, where there is no RAM-backed folder.
        seed: Seed of the engine itself.

    Raises:
        ConfigError: The engine is not resolved or not installed.
    """
    match config.engine:
        case "hf":
            return HFEngine(
                shared_base,
                pad_token_id=pad_token_id,
                eos_token_id=eos_token_id,
                batch_size=batch_size,
            )
        case "vllm":
            from stages.rollouts.vllm_engine import VLLMEngine

            return VLLMEngine(
                config.vllm,
                model,
                shared_base,
                base=base,
                eos_token_id=eos_token_id,
                max_length=max_prompt_tokens + config.max_new_tokens,
                config_dir=config_dir,
                scratch_dir=scratch_dir,
                seed=seed,
            )
        case "auto":
            raise ConfigError("rollout.engine: `auto` reached a stage; the pipeline resolves it: name `hf` or `vllm`")
