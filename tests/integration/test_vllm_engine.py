"""vLLM in this process runs the adapter that was just sent: real engine, tiny random Llama, float32."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch

from data.collators import collate_episodes
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.tuning import attach_adapter, lora_config, save_adapter
from stages.rollouts.config import SamplingConfig, VLLMConfig
from stages.rollouts.contract import Rollout
from stages.rollouts.vllm_engine import VLLMEngine

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
SAMPLING = SamplingConfig(max_new_tokens=8, temperature=0.7)


@pytest.fixture(params=["none", "nf4"])
def parts(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SharedBase, VLLMEngine]]:
    """A shared base with a policy, and an engine for it, with full and with NF4 weights."""
    quantization: Literal["none", "nf4"] = request.param
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    model = ModelConfig.model_validate(
        {
            "base": str(tiny_llama),
            "dtype": "float32",
            "quantization": quantization,
            "tuning": {"rank": 4, "alpha": 8},
        }
    )
    loaded = load_causal_lm(tiny_llama, model, "cpu")
    peft_model = attach_adapter(loaded, lora_config(model, loaded.config, "causal_lm"), seed=0)
    save_adapter(peft_model, "default", tmp_path / "adapter", base_spec=model.base)
    shared_base = SharedBase(load_causal_lm(tiny_llama, model, "cpu"), model)
    shared_base.add_adapter("policy", tmp_path / "adapter", trainable=True)
    engine = VLLMEngine(
        VLLMConfig(),
        model,
        shared_base,
        base=tiny_llama,
        eos_token_id=1,
        max_length=64,
        config_dir=None,
        scratch_dir=tmp_path,
        seed=0,
    )
    yield shared_base, engine
    engine.close()


def largest_gap(shared_base: SharedBase, rollouts: list[Rollout]) -> float:
    """Largest difference of the trainer's log-probabilities to the engine's, in nats."""
    batch = collate_episodes(
        [rollout.prompt_ids for rollout in rollouts], [rollout.response_ids for rollout in rollouts], 0
    )
    with torch.no_grad(), shared_base.role("policy"):
        trainer, _ = shared_base.response_logprobs(batch, temperature=SAMPLING.temperature)
    engine = torch.zeros_like(trainer)
    for row, rollout in enumerate(rollouts):
        engine[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
    return float((trainer - engine).abs().max())


def test_checklist_21_each_version_that_is_sent_is_the_one_that_acts(parts: tuple[SharedBase, VLLMEngine]) -> None:
    shared_base, engine = parts
    with pytest.raises(ValueError, match="no policy is loaded"):
        engine.generate(PROMPTS, SAMPLING, seed=5)
    stale: list[Rollout] = []
    generator = torch.Generator().manual_seed(0)
    for version in (1, 2, 3):
        assert engine.load_policy("policy") == version == engine.version
        rollouts = engine.generate(PROMPTS, SAMPLING, seed=5)
        # FACTS: float32 on both sides agrees to 2e-6; the step below moves the policy a thousand times further.
        assert largest_gap(shared_base, rollouts) < 1e-4
        assert rollouts != stale
        assert engine.generate(PROMPTS, SAMPLING, seed=5) == rollouts
        stale = rollouts
        with torch.no_grad():
            for parameter in shared_base.parameters("policy"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        # Not sent yet: the engine still acts with the version before, and the gap says so.
        assert largest_gap(shared_base, engine.generate(PROMPTS, SAMPLING, seed=5)) > 1e-2
