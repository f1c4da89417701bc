"""Backends of a vLLM server for tests, and adapters for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.models.config import ModelConfig
from stages.ranks import Ranks
from stages.rollouts.adapter_files import folder_digest
from stages.rollouts.config import SamplingConfig, VLLMConfig, VLLMServerConfig
from stages.rollouts.contract import PublishedAdapter
from stages.rollouts.vllm_server import VLLMServerBackend

EOS = 7
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13], [20, 21]]
SAMPLING = SamplingConfig(max_new_tokens=6, temperature=0.7)

Connect = Callable[..., VLLMServerBackend]


def model_section(base: str = "base", **other: Any) -> ModelConfig:
    return ModelConfig.model_validate({"base": base, "dtype": "float32", "tuning": {"rank": 4, "alpha": 8}, **other})


def backend_of(config: VLLMServerConfig, tmp_path: Path, *, served: str = "base", max_length: int = 64) -> Any:
    return VLLMServerBackend(
        config, VLLMConfig(), model_section(), served=served, eos_token_id=EOS, max_length=max_length, seed=5,
        log_path=tmp_path / "vllm.log", ranks=Ranks(),
    )  # fmt: skip


def published(folder: Path, version: int = 1, *, rank: int = 4) -> PublishedAdapter:
    own = folder / f"v{version}"
    own.mkdir()
    (own / "adapter_config.json").write_text(json.dumps({"r": rank, "version": version}))
    return PublishedAdapter(version, f"policy-v{version}", own, folder_digest(own))
