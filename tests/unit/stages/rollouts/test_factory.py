"""The engine that a configuration names."""

from pathlib import Path

import pytest

from data.errors import ConfigError
from stages.models.config import ModelConfig
from stages.models.tokenizer import load_tokenizer
from stages.rollouts.config import RolloutConfig
from stages.rollouts.factory import build_engine, serves_trainer_weights
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


@pytest.mark.parametrize(
    ("engine", "quantization", "served", "same"),
    [
        ("vllm", "nf4", "trainer", True),
        ("vllm", "nf4", "original", False),
        ("vllm", "none", "original", True),
        ("hf", "nf4", "trainer", True),
    ],
)
def test_only_the_original_weights_beside_nf4_are_others(
    engine: str, quantization: str, served: str, same: bool
) -> None:
    config = RolloutConfig.model_validate({"engine": engine, "vllm": {"base_weights": served}})
    model = ModelConfig.model_validate({"base": "x", "quantization": quantization})
    assert serves_trainer_weights(config, model) == same
