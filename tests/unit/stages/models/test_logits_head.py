"""The head that never makes all logits: equal to the model's own for every family, or left to the model."""

import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from data.collators import collate_episodes
from stages.models.loading import load_causal_lm
from stages.models.logits_head import LogitsHead
from stages.models.shared_base import SharedBase
from tests.tiny import FAMILIES, Family
from tests.unit.stages.parts import PAD, FoldersOf, all_roles, model_config, random_rows

PROMPTS = random_rows([5, 2, 8], seed=21)
RESPONSES = random_rows([4, 7, 1], seed=22)


class Doubled(LlamaForCausalLM):
    """A head that no configuration tells of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Twice the logits."""
        output = super().forward(*args, **kwargs)
        output.logits = 2.0 * output.logits
        return output


@pytest.mark.parametrize("family", FAMILIES)
def test_head_of_every_family_gives_the_models_own_logits(family: Family, folders: FoldersOf) -> None:
    base = folders(family).base
    model = load_causal_lm(base, model_config(base), "cpu")
    ids = torch.tensor(random_rows([9, 9], seed=3))
    head = LogitsHead.of(model)
    assert head is not None
    with torch.no_grad():
        found = head(model.base_model(ids).last_hidden_state.flatten(0, 1))
        torch.testing.assert_close(found, model(ids).logits.flatten(0, 1), rtol=1e-6, atol=1e-6)
    assert (head.soft_cap is not None) == (family == "gemma2")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("cohere", {"logit_scale": 7.0}), ("granite", {"logits_scaling": 0.125}), ("phi", {"partial_rotary_factor": 0.5})],
)
def test_scaled_and_biased_heads(kind: str, settings: dict[str, Any]) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model(kind, vocab_size=40, num_key_value_heads=2, pad_token_id=0, **sizes, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8.0) if weight.ndim > 1 else weight.add_(torch.linspace(0, 1, len(weight)))
    head = LogitsHead.of(model)
    ids = torch.tensor([[5, 6, 7]])
    assert head is not None
    assert head.scale == {"cohere": 7.0, "granite": 8.0}.get(kind, 1.0)
    assert (head.projection.bias is not None) == (kind == "phi")
    with torch.no_grad():
        torch.testing.assert_close(head(model.base_model(ids).last_hidden_state), model(ids).logits)


def test_a_soft_cap_bounds_the_logits() -> None:
    head = LogitsHead(torch.nn.Identity(), scale=2.0, soft_cap=3.0)
    # 3 tanh(2 x / 3): 0 at 0, 3 tanh(1) = 2.2848 at 1.5, 3 far out
    found = head(torch.tensor([[0.0, 1.5, 500.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.28478, 3.0]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "opt"])
def test_chunks_of_any_size_give_the_models_own_logprobs(
    family: Family, folders: FoldersOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = all_roles(folders(family))
    batch = collate_episodes(PROMPTS, RESPONSES, PAD)
    for chunk in (1, 5, 1024):
        monkeypatch.setattr(shared, "_chunk_rows", chunk)
        with shared.role("policy"):
            found = shared.training_logprobs(batch, temperature=1.3).detach()
        with shared.role("policy"), torch.no_grad():
            measured, _ = shared.response_logprobs(batch, temperature=1.3)
            torch.testing.assert_close(found, measured, rtol=0, atol=1e-6)
            for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
                logits = shared.peft_model.get_base_model()(torch.tensor([prompt + response])).logits
                own = torch.log_softmax(logits[0, len(prompt) - 1 : -1] / 1.3, dim=-1)
                expected = own.gather(1, torch.tensor(response)[:, None])[:, 0]
                torch.testing.assert_close(found[row, : len(response)], expected, rtol=0, atol=1e-5)


def test_an_unknown_head_is_left_to_the_model_with_a_warning(
    folders: FoldersOf, caplog: pytest.LogCaptureFixture
) -> None:
    own = folders("llama")
    loaded = Doubled.from_pretrained(own.base, dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        shared = SharedBase(loaded, model_config(own.base))
    assert "Doubled: the logits of its head are not those of output embedding" in caplog.text
    assert "Lower the microbatch size" in caplog.text
    shared.add_adapter("policy", own.policy, trainable=True)
    batch = collate_episodes(PROMPTS, RESPONSES, PAD)
    with shared.role("policy"):
        found = shared.training_logprobs(batch, temperature=0.9)
        torch.autograd.backward(found.sum())
        with torch.no_grad():
            measured, entropy = shared.response_logprobs(batch, temperature=0.9)
        torch.testing.assert_close(found.detach(), measured, rtol=0, atol=1e-6)
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            with torch.no_grad():
                logits = loaded(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            distribution = torch.log_softmax(logits / 0.9, dim=-1)
            expected = distribution.gather(1, torch.tensor(response)[:, None])[:, 0]
            torch.testing.assert_close(found[row, : len(response)], expected, rtol=0, atol=1e-5)
            expected = -(distribution.exp() * distribution).sum(-1)
            torch.testing.assert_close(entropy[row, : len(response)], expected, rtol=0, atol=1e-5)
    assert all(parameter.grad is not None for parameter in shared.parameters("policy"))


def test_the_known_heads_need_no_warning(folders: FoldersOf, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        all_roles(folders("gemma2"))
    assert "logits" not in caplog.text
