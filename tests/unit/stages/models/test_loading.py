"""Loading: every family, both tasks, NF4 on the CPU, the head, dropout off, broken weights."""

import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import ModelError
from stages.models.config import ModelConfig
from stages.models.loading import (
    disable_dropout,
    embedding_rows,
    hidden_size,
    load_base_config,
    load_causal_lm,
    load_sequence_classifier,
    make_score_head,
    num_blocks,
)
from stages.models.tuning import attach_adapter, lora_config
from tests.tiny import FAMILIES, Family, tiny_model_dir

IDS = torch.tensor([[5, 6, 7, 8, 9], [40, 41, 42, 43, 44]])


def _model(folder: Path, **settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"base": str(folder), "dtype": "float32"} | settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_for_both_tasks_on_one_trunk(family: Family, family_dir) -> None:
    folder = family_dir(family)
    model = _model(folder)
    causal = load_causal_lm(folder, model, "cpu")
    classifier = load_sequence_classifier(folder, model, "cpu", pad_token_id=3, seed=1)
    assert embedding_rows(causal) == 320
    assert num_blocks(causal.config) == 2 and hidden_size(causal.config) == 32
    with torch.no_grad():
        assert causal(IDS).logits.shape == (2, 5, 320)
        hidden = causal(IDS, output_hidden_states=True).hidden_states[-1][:, -1]
        torch.testing.assert_close(classifier(IDS).logits, hidden @ classifier.score.weight.T)
    assert not any(weight.requires_grad for weight in causal.parameters())
    trainable = [name for name, weight in classifier.named_parameters() if weight.requires_grad]
    assert trainable == ["score.weight"]
    assert not causal.training and not classifier.training


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_checklist_08_head_init_has_no_bias_and_the_stated_spread(family: Family, family_dir) -> None:
    folder = family_dir(family)
    torch.manual_seed(0)
    first = load_sequence_classifier(folder, _model(folder), "cpu", pad_token_id=3, seed=1).score
    torch.manual_seed(99)
    second = load_sequence_classifier(folder, _model(folder), "cpu", pad_token_id=3, seed=1).score
    third = load_sequence_classifier(folder, _model(folder), "cpu", pad_token_id=3, seed=2).score
    assert first.bias is None and first.weight.dtype == torch.float32
    assert first.in_features == (16 if family == "opt" else 32)  # OPT's word_embed_proj_dim
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, third.weight)
    width = 40_000
    weight = make_score_head(width, seed=0).weight
    # The standard error of a standard deviation from n draws is sigma / sqrt(2 n), here 0.35 %.
    assert weight.std().item() == pytest.approx(1 / math.sqrt(width + 1), rel=0.015)
    assert abs(weight.mean().item()) < 4 / width


def test_the_head_computes_in_float32_below_a_bfloat16_trunk(family_dir) -> None:
    folder = family_dir("llama")
    model = _model(folder, dtype="bfloat16")
    classifier = load_sequence_classifier(folder, model, "cpu", pad_token_id=3, seed=0)
    assert classifier.model.norm.weight.dtype == torch.bfloat16
    with torch.no_grad():
        hidden = classifier.model(IDS).last_hidden_state[:, -1]
        plain = classifier(IDS).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = classifier(IDS).logits
    assert hidden.dtype == torch.bfloat16 and plain.dtype == autocast.dtype == torch.float32
    torch.testing.assert_close(plain, hidden.float() @ classifier.score.weight.T)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nf4_on_the_cpu_is_close_to_the_base_for_both_tasks(family: Family, tmp_path: Path) -> None:
    # Hidden 64: bitsandbytes 0.50.2 mixes up the blocks of 64 on the CPU where a row is no multiple of 64.
    folder = tiny_model_dir(family, tmp_path / family, hidden=64)
    whole = load_causal_lm(folder, _model(folder), "cpu")
    quantised = load_causal_lm(folder, _model(folder, quantization="nf4"), "cpu")
    classifier = load_sequence_classifier(folder, _model(folder, quantization="nf4"), "cpu", 3, seed=1)
    kinds = {name: type(module).__name__ for name, module in classifier.named_modules()}
    assert kinds["score"] == "Float32Linear" and "Linear4bit" in kinds.values()
    with torch.no_grad():
        expected, found = whole(IDS).logits, quantised(IDS, output_hidden_states=True)
        scores = classifier(IDS).logits
    assert torch.cosine_similarity(expected.flatten(), found.logits.flatten(), dim=0) > 0.95
    original = {name: weight.detach() for name, weight in whole.named_parameters()}
    for name, module in quantised.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            wanted = original[f"{name}.weight"].T if family == "gpt2" else original[f"{name}.weight"]
            # NF4 in blocks of 64 has a relative error of about 0.09 on normal weights.
            assert (weight - wanted).norm() < 0.11 * wanted.norm()
            assert module.weight.quant_state.nested and module.weight.quant_state.quant_type == "nf4"
    torch.testing.assert_close(scores, found.hidden_states[-1][:, -1] @ classifier.score.weight.T)


def test_nf4_keeps_gradients_and_values_after_an_eval_pass(tmp_path: Path) -> None:
    """The library repacks weights for a kernel without backward; hidden 64 is what it needs for that."""
    folder = tiny_model_dir("llama", tmp_path / "llama", hidden=64)
    model = _model(folder, dtype="bfloat16", quantization="nf4", tuning={"rank": 4})
    causal = load_causal_lm(folder, model, "cpu")
    peft_model = attach_adapter(causal, lora_config(model, causal.config, "causal_lm"), seed=0)
    lowest = next(weight for name, weight in peft_model.named_parameters() if "layers.0" in name and "lora_B" in name)

    def gradient() -> torch.Tensor:
        peft_model.zero_grad()
        peft_model.train()
        peft_model(IDS).logits.float().square().mean().backward()
        assert lowest.grad is not None
        return lowest.grad.clone()

    before = gradient()
    peft_model.eval()
    with torch.no_grad():
        evaluated = peft_model(IDS).logits
        peft_model.train()
        trained = peft_model(IDS).logits
    assert before.abs().max() > 0
    assert torch.equal(evaluated, trained)
    assert torch.equal(before, gradient())


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "llama"])
def test_checklist_41_dropout_is_off_in_every_pass(family: Family, family_dir, tmp_path: Path, edit_json) -> None:
    folder = Path(shutil.copytree(family_dir(family), tmp_path / family))
    rates = {
        "gpt2": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
        "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "activation_dropout": 0.5},
        "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
        "llama": {"attention_dropout": 0.5},
    }
    edit_json(folder / "config.json", **rates[family])
    model = _model(folder, tuning={"rank": 4, "dropout": 0.5})
    base = load_causal_lm(folder, model, "cpu")
    peft_model = attach_adapter(base, lora_config(model, base.config, "causal_lm"), seed=0)
    for name, weight in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    with torch.no_grad():
        expected = peft_model.eval()(IDS).logits
        peft_model.train()
        assert not torch.equal(peft_model(IDS).logits, peft_model(IDS).logits), "the control has no dropout"
        disable_dropout(peft_model)
        assert peft_model.training
        for _ in range(5):
            assert torch.equal(peft_model(IDS).logits, expected)
    owners = [*peft_model.modules(), base.config]
    left = [(name, value) for owner in owners for name, value in vars(owner).items() if "drop" in name and value]
    assert [(name, value) for name, value in left if isinstance(value, float)] == []
    assert all(module.p == 0 for module in peft_model.modules() if isinstance(module, torch.nn.Dropout))


def test_nf4_with_rows_that_bitsandbytes_gets_wrong_is_named(family_dir, caplog: pytest.LogCaptureFixture) -> None:
    folder = family_dir("llama")
    load_causal_lm(folder, _model(folder, quantization="nf4"), "cpu")
    assert "model.layers.0.self_attn.q_proj has rows of 32, no multiple of 64" in caplog.text


def test_nan_weights_are_refused_by_name(llama_copy: Path) -> None:
    weights = load_file(llama_copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(weights, llama_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weight model.layers.1.mlp.up_proj.weight holds NaN.*Copy or download"):
        load_causal_lm(llama_copy, _model(llama_copy), "cpu")


def test_missing_weights_are_not_drawn_at_random(llama_copy: Path) -> None:
    weights = load_file(llama_copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, llama_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing in the files, model.layers.1.mlp.up_proj.weight"):
        load_causal_lm(llama_copy, _model(llama_copy), "cpu")


def test_an_unknown_architecture_is_a_model_error(llama_copy: Path, edit_json) -> None:
    edit_json(llama_copy / "config.json", model_type="no_such_model")
    message = re.escape(f"model.base='{llama_copy}': transformers cannot load it (")
    with pytest.raises(ModelError, match=message + r".*is needed. Check the name"):
        load_base_config(llama_copy, _model(llama_copy))
    with pytest.raises(ModelError, match=message):
        load_causal_lm(llama_copy, _model(llama_copy), "cpu")


def test_loading_says_nothing(family_dir, capfd: pytest.CaptureFixture[str]) -> None:
    folder = family_dir("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_sequence_classifier(folder, _model(folder), "cpu", pad_token_id=3, seed=0)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
