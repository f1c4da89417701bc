"""The engine that a configuration names."""

from pathlib import Path

import pytest

from data.errors import ConfigError
from stages.models.tokenizer import load_tokenizer
from stages.rollouts.config import RolloutConfig
from stages.rollouts.factory import build_engine
from stages.rollouts.hf_engine import HFEngine
from tests.unit.stages.parts import FoldersOf, all_roles, model_config, stage_context


def test_hf_is_built_and_auto_is_refused(folders: FoldersOf, tmp_path: Path) -> None:
    own = folders("llama")
    shared, model = all_roles(own), model_config(own.base)
    common = {
        "base": own.base, "tokenizer": load_tokenizer(own.base, model), "prompts": [[5]], "batch_size": 4,
        "max_prompt_tokens": 8, "context": stage_context(tmp_path),
    }  # fmt: skip
    assert isinstance(build_engine(RolloutConfig(engine="hf"), model, shared, **common), HFEngine)
    with pytest.raises(ConfigError, match="`auto` reached a stage.*name `hf` or `vllm`"):
        build_engine(RolloutConfig(engine="auto"), model, shared, **common)
