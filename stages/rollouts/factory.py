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
    role: str,
    pad_token_id: int,
    eos_token_id: int,
    batch_size: int,
    scratch_dir: Path,
    seed: int,
) -> RolloutEngine:
    """Make an engine that acts with one role of the shared base.

    Args:
        config: Engine and sampling.
        model: Base and adapter, for the engine's own copy.
        shared_base: The trainer's model.
        base: Folder or hub id of the base.
        role: Adapter that acts.
        pad_token_id: Fills shorter rows.
        eos_token_id: Ends a response.
        batch_size: Prompts in one call of transformers' `generate`; vLLM batches by itself.
        scratch_dir: For adapters on their way to an engine, where there is no RAM-backed folder.
        seed: Seed of the engine itself.

    Raises:
        ConfigError: The engine is not resolved or not installed.
    """
    match config.engine:
        case "hf":
            return HFEngine(
                shared_base,
                role=role,
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
                role=role,
                eos_token_id=eos_token_id,
                scratch_dir=scratch_dir,
                seed=seed,
            )
        case "auto":
            raise ConfigError(
                "rollout.engine: `auto` reached a stage; the pipeline resolves it: name `hf` or `vllm`"
            )
