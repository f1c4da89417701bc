"""Blocks compiled by torch beside the plain ones: same values and gradients, generating as before, what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from data.collators import collate_episodes
from data.errors import ModelError
from stages.models.config import ModelConfig
from stages.models.shared_base import SharedBase
from tests.tiny import Family, tiny_model_dir
from tests.unit.stages.models.separate import precise_config
from tests.unit.stages.parts import PAD, Folders, all_roles, random_rows, save_random_adapter

BATCHES = [
    collate_episodes(random_rows(prompts, seed=21), random_rows(responses, seed=22), PAD)
    for prompts, responses in (([5, 2, 8], [4, 7, 1]), ([3, 6], [2, 9]))
]


def folders_of(family: Family, root: Path) -> Folders:
    """A base of three blocks and adapters on the upper two."""
    base = tiny_model_dir(family, root / "base", layers=3)
    folders = Folders(base, root / "policy", root / "reward")
    save_random_adapter(folders.policy, base, "causal_lm", seed=1, layers={"last": 2})
    save_random_adapter(folders.reward, base, "seq_cls", seed=2, layers={"last": 2})
    return folders


def shared_of(folders: Folders) -> SharedBase:
    """All roles, in float32: there compiled and plain blocks differ by the order of sums alone."""
    settings = precise_config(folders.base, "float32").model_dump()
    settings["tuning"]["layers"] = {"last": 2}
    return all_roles(folders, ModelConfig.model_validate(settings))


def figures(shared: SharedBase) -> dict[str, Tensor]:
    """Log-probabilities of each batch under two roles, and the gradients of the trained one."""
    found: dict[str, Tensor] = {}
    for number, batch in enumerate(BATCHES):
        for role, trains in (("policy", True), ("reward", False)):
            with shared.cached_trunk(), shared.role(role), torch.set_grad_enabled(trains):
                logprobs = shared.training_logprobs(batch, temperature=0.7)
                found[f"{number} {role}"] = logprobs.detach().clone()
                if trains:
                    logprobs.square().sum().backward()
                    for at, parameter in enumerate(shared.parameters(role)):
                        assert parameter.grad is not None
                        found[f"{number} {role} gradient {at}"] = parameter.grad
                        parameter.grad = None
    return found


@pytest.mark.parametrize("family, mode", [("llama", "trunk"), ("gpt2", "checkpointing")])
def test_values_and_gradients_are_those_of_plain_blocks(family: Family, mode: str, tmp_path: Path) -> None:
    folders = folders_of(family, tmp_path)
    plain, compiled = shared_of(folders), shared_of(folders)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for shared in (plain, compiled):
        if mode == "trunk":
            assert shared.enable_trunk_cache() == 1
        if shared is compiled:
            shared.compile_blocks()
        if mode == "checkpointing":
            shared.enable_gradient_checkpointing()
    expected, found = figures(plain), figures(compiled)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    # Not a plain pass in disguise, and one graph for all blocks: far fewer than blocks x roles x batches.
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 10


def test_generating_is_left_to_the_plain_blocks(tmp_path: Path) -> None:
    folders = folders_of("llama", tmp_path)
    plain, compiled = shared_of(folders), shared_of(folders)
    compiled.compile_blocks()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    prompts = BATCHES[0].input_ids[:, : BATCHES[0].prompt_width]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=PAD)
    tokens = []
    for shared in (plain, compiled):
        with torch.no_grad(), shared.role("policy"):
            tokens.append(shared.generate(prompts, prompts != PAD, generation_config=settings).tolist())
    assert tokens[0] == tokens[1]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_a_missing_compiler_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = shared_of(folders_of("llama", tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ModelError, match=r"found no C\+\+ compiler .*apt install g\+\+.*`ppo.compile_blocks: false`"):
        shared.compile_blocks()
