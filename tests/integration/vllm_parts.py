"""What the tests of the vLLM engines share: a base with a policy, probes, the gap between trainer and engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.collators import collate_episodes
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.tuning import attach_adapter, lora_config, save_adapter
from stages.rollouts.config import SamplingConfig
from stages.rollouts.contract import Rollout, RolloutEngine
from stages.seeds import row_seeds

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
SAMPLING = SamplingConfig(max_new_tokens=8, temperature=0.7)
EOS, PAD = 1, 0


def model_section(base: Path, *, dtype: str = "float32", quantization: str = "none") -> ModelConfig:
    """The model section of a tiny base."""
    settings: dict[str, Any] = {"base": str(base), "dtype": dtype, "quantization": quantization}
    return ModelConfig.model_validate({**settings, "tuning": {"rank": 4, "alpha": 8}})


def base_with_policy(base: Path, model: ModelConfig, folder: Path, *, spread: float = 0.0) -> SharedBase:
    """A shared base with a trainable policy; `spread` is the standard deviation of its B (0 as before training)."""
    loaded = load_causal_lm(base, model, "cpu")
    peft_model = attach_adapter(loaded, lora_config(model, loaded.config, "causal_lm"), seed=0)
    save_adapter(peft_model, "default", folder, base_spec=model.base)
    shared = SharedBase(load_causal_lm(base, model, "cpu"), model)
    shared.add_adapter("policy", folder, trainable=True)
    if spread:
        move(shared, spread, seed=9)
    return shared


def move(shared: SharedBase, size: float, *, seed: int, role: str = "policy") -> None:
    """Change every parameter of an adapter by a normal number of this standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in shared.parameters(role):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def largest_gap(shared: SharedBase, rollouts: Sequence[Rollout], role: str = "policy") -> float:
    """Largest difference of the trainer's log-probabilities to the engine's, in nats."""
    batch = collate_episodes([r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts], PAD)
    with torch.no_grad(), shared.role(role):
        trainer, _ = shared.response_logprobs(batch, temperature=SAMPLING.temperature)
    engine = torch.zeros_like(trainer)
    for row, rollout in enumerate(rollouts):
        engine[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
    return float((trainer - engine).abs().max())


def check_endings(engine: RolloutEngine) -> None:
    """A response ends with our EOS or at the limit, and the base's own EOS (2 in the tiny Llama) is a token."""
    hot = SamplingConfig(max_new_tokens=40, temperature=2.0)  # nearly uniform over 320 tokens
    rollouts = engine.generate([[5, 6]] * 64, hot, seeds=row_seeds(1, 64))
    assert 0 < sum(rollout.finished for rollout in rollouts) < 64
    for rollout in rollouts:
        assert rollout.response_ids.count(EOS) == int(rollout.finished)
        assert (rollout.response_ids[-1] == EOS) == rollout.finished
        assert rollout.finished or len(rollout.response_ids) == 40
        assert len(rollout.logprobs) == len(rollout.response_ids)
    assert any(2 in rollout.response_ids for rollout in rollouts)
