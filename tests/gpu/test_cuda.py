"""The shared base on a CUDA device: roles, log-probabilities and rollouts agree with the CPU's."""

from pathlib import Path

import pytest
import torch

from data.collators import collate_episodes
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.shared_base import SharedBase
from stages.models.tuning import attach_adapter, lora_config, save_adapter
from stages.rollouts.config import SamplingConfig
from stages.rollouts.hf_engine import HFEngine
from stages.seeds import row_seeds
from tests.tiny import tiny_model_dir

pytestmark = pytest.mark.gpu

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, ModelConfig]:
    folder = tmp_path_factory.mktemp("cuda")
    base = tiny_model_dir("llama", folder / "base", hidden=64)
    model = ModelConfig.model_validate({"base": str(base), "dtype": "float32", "tuning": {"rank": 4, "alpha": 8}})
    loaded = load_causal_lm(base, model, "cpu")
    peft_model = attach_adapter(loaded, lora_config(model, loaded.config, "causal_lm"), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_adapter(peft_model, "default", folder / "adapter", base_spec=model.base)
    return base, folder / "adapter", model


def shared_base(adapter: tuple[Path, Path, ModelConfig], device: str) -> SharedBase:
    base, folder, model = adapter
    made = SharedBase(load_causal_lm(base, model, device), model)
    made.add_adapter("policy", folder, trainable=True)
    return made


def test_logprobs_on_the_gpu_equal_those_on_the_cpu(adapter: tuple[Path, Path, ModelConfig]) -> None:
    batch = collate_episodes(PROMPTS, [[13, 14], [15, 16, 17]], 0)
    found = {}
    for device in ("cpu", "cuda"):
        base = shared_base(adapter, device)
        with torch.no_grad(), base.role("policy"):
            found[device], _ = base.response_logprobs(batch.to(base.device), temperature=0.7)
    torch.testing.assert_close(found["cuda"].cpu(), found["cpu"], atol=1e-4, rtol=1e-4)


def test_rollouts_on_the_gpu_are_repeatable_and_their_logprobs_are_the_trainers(
    adapter: tuple[Path, Path, ModelConfig],
) -> None:
    base = shared_base(adapter, "cuda")
    engine = HFEngine(base, pad_token_id=0, eos_token_id=1, batch_size=2)
    engine.load_policy("policy")
    sampling = SamplingConfig(max_new_tokens=8)
    first = engine.generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS)))
    assert engine.generate(PROMPTS, sampling, seeds=row_seeds(3, len(PROMPTS))) == first
    batch = collate_episodes(
        [rollout.prompt_ids for rollout in first], [rollout.response_ids for rollout in first], 0
    ).to(base.device)
    with torch.no_grad(), base.role("policy"):
        logprobs, _ = base.response_logprobs(batch, temperature=1.0)
    for row, rollout in enumerate(first):
        expected = torch.tensor(rollout.logprobs)
        torch.testing.assert_close(logprobs[row, : len(expected)].cpu(), expected, atol=1e-3, rtol=1e-3)
