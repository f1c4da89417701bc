"""What the configuration of a base on this machine contradicts, read without transformers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import ModelError
from pipeline.config import PipelineConfig
from stages.models.config import ModelConfig
from stages.models.sources import base_kind, local_folder


def size_problems(config: PipelineConfig, config_dir: Path | None) -> Iterator[str]:
    """One line a problem: more adapted blocks than there are, and responses that leave a prompt no position.

    A base that is on the hub, or that another check refuses, is passed over.

    Args:
        config: Of the run.
        config_dir: Folder of the configuration file.
    """
    for key, model in (("model", config.model), (config.own_reward_key, config.own_reward_base)):
        blocks = None if model is None else _size(model, config_dir, "num_hidden_layers", "n_layer", "num_layers")
        if model is not None and model.tuning.layers is not None and blocks and model.tuning.layers.last > blocks:
            yield (
                f"{key}.tuning.layers.last={model.tuning.layers.last}, but {model.base!r} has {blocks} blocks; at most "
                f"that many can carry adapters; use `layers: {{last: {blocks}}}` or less, or leave `layers` out for all"
            )
    positions = _size(config.model, config_dir, "max_position_embeddings", "n_positions")
    if not positions:
        return
    for key, tokens in _response_lengths(config):
        if tokens >= positions:
            yield (
                f"{key}={tokens}, but {config.model.base!r} knows {positions} positions for prompt and response "
                f"together; a prompt needs some of them; lower {key} to less than {positions}"
            )


def _response_lengths(config: PipelineConfig) -> Iterator[tuple[str, int]]:
    for name in ("preferences", "ppo", "evaluation"):
        section = getattr(config, name)
        if section is not None:
            yield f"{name}.rollout.max_new_tokens", section.rollout.max_new_tokens
    if config.reward_model is not None:
        sampling = config.reward_model.normalization.sampling
        yield "reward_model.normalization.sampling.max_new_tokens", sampling.max_new_tokens


def _size(model: ModelConfig, config_dir: Path | None, *names: str) -> int | None:
    """The first of these sizes that the base's `config.json` has."""
    if base_kind(model.base, config_dir) != "local":
        return None
    try:
        values: Any = json.loads((local_folder(model.base, config_dir) / "config.json").read_text(encoding="utf-8"))
    except (ModelError, OSError, ValueError, RecursionError):
        return None
    if isinstance(values, dict) and isinstance(values.get("text_config"), dict):
        values = values["text_config"]
    found = [values[name] for name in names if name in values] if isinstance(values, dict) else []
    return found[0] if found and isinstance(found[0], int) else None
