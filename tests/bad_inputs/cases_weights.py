"""Weights of base models at fault: files that are cut off, pickled or not there, values and shapes that do not fit."""

import pickle
from pathlib import Path
from typing import Any

import numpy

from tests.bad_inputs.model_case import ModelCase, cut, edit, header, in_turn, remove, rename, tensors, write

_WEIGHTS = "base/model.safetensors"
_INDEX = "base/model.safetensors.index.json"
_UP = "model.layers.1.mlp.up_proj.weight"
_BASE = "model.base='./base' (base): "
_LOADED = "model.base='base': "
_COPY_FILE = "The file is damaged or only partly copied. Copy or download it again."
_COPY_FOLDER = "Copy or download the folder again."
_JSON = "A valid file is needed. Copy or download it again."


def _garbage_header(folder: Path) -> None:
    path = folder / _WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes(content[:8] + b"{" * length + content[8 + length :])


def _longer(folder: Path) -> None:
    path = folder / _WEIGHTS
    path.write_bytes(path.read_bytes() + b"x" * 16)


def _one(arrays: dict[str, Any], value: float) -> None:
    arrays[_UP][3, 5] = value


FILES = [
    ModelCase(
        "no weights",
        remove(_WEIGHTS),
        _BASE
        + "no weights. model.safetensors, or model.safetensors.index.json with its files, is needed. "
        + _COPY_FOLDER,
    ),
    ModelCase(
        "no byte of weights",
        write(_WEIGHTS, b""),
        _BASE + f"model.safetensors has 0 bytes, too few for a safetensors header. {_COPY_FILE}",
    ),
    ModelCase(
        "a header that is cut off",
        cut(_WEIGHTS, 20),
        (_BASE + "model.safetensors announces a header of", "bytes in a file of 20.", _COPY_FILE),
    ),
    ModelCase(
        "data that is cut off",
        cut(_WEIGHTS, -100),
        (_BASE + "model.safetensors has", "bytes, its header announces", _COPY_FILE),
    ),
    ModelCase(
        "data that goes on",
        _longer,
        (_BASE + "model.safetensors has", "bytes, its header announces", _COPY_FILE),
    ),
    ModelCase(
        "garbage as header",
        _garbage_header,
        _BASE + f"model.safetensors has an unreadable safetensors header. {_COPY_FILE}",
    ),
    ModelCase(
        "bytes before the file",
        header(_WEIGHTS, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b""),
        _BASE + f"model.safetensors has an unreadable safetensors header. {_COPY_FILE}",
    ),
    ModelCase(
        "two weights in the same bytes",
        header(_WEIGHTS, {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, b"0" * 8),
        _BASE + "model.safetensors has b at bytes 130 to 138, not from 138 on. Tensors that follow one another "
        f"without gaps are needed. {_COPY_FILE}",
    ),
    ModelCase(
        "fewer bytes than the shape needs",
        header(_WEIGHTS, {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}}, b"0" * 8),
        _BASE + f"model.safetensors has 8 bytes for a, F32 of shape (2, 2), which needs 16. {_COPY_FILE}",
    ),
    ModelCase(
        "a header without tensors",
        header(_WEIGHTS, {}, b""),
        _BASE + f"the weight files hold no tensor. The weights of the model are needed. {_COPY_FOLDER}",
    ),
    ModelCase(
        "pickled weights alone",
        rename(_WEIGHTS, "pytorch_model.bin"),
        _BASE + "the weights are pickled (pytorch_model.bin), which can run code when they are loaded. Weights in "
        "safetensors are needed. If you trust the file, convert it once: "
        "`AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)`.",
    ),
    ModelCase(
        "a pickle named as safetensors",
        write(_WEIGHTS, pickle.dumps({"a": [1.0] * 100}, protocol=4)),
        _BASE + "model.safetensors is no safetensors file but pickled (it begins as a pickle does), which can run "
        "code when it is loaded. Weights in safetensors are needed. Get them from where the model comes from.",
    ),
    ModelCase(
        "an index that is cut off",
        in_turn(remove(_WEIGHTS), write(_INDEX, '{"weight_map": {')),
        _BASE + "model.safetensors.index.json is no JSON (Expecting property name enclosed in double quotes: line 1 "
        f"column 17 (char 16)). {_JSON}",
    ),
    ModelCase(
        "an index of nothing",
        in_turn(remove(_WEIGHTS), write(_INDEX, '{"weight_map": {}}')),
        _BASE + "model.safetensors.index.json has no `weight_map`. It has to name the file of every weight. Copy or "
        "download it again.",
    ),
    ModelCase(
        "an index without metadata",
        in_turn(rename(_WEIGHTS, "one.safetensors"), write(_INDEX, '{"weight_map": {"a": "one.safetensors"}}')),
        _BASE + "model.safetensors.index.json has no `metadata`. transformers reads it, though it may be empty. Copy "
        'or download the file again, or add `"metadata": {}` to it.',
    ),
    ModelCase(
        "a shard that is missing",
        in_turn(
            rename(_WEIGHTS, "one.safetensors"),
            write(
                _INDEX, f'{{"metadata": {{}}, "weight_map": {{"{_UP}": "one.safetensors", "b": "two.safetensors"}}}}'
            ),
        ),
        _BASE + "1 of 2 weight files are missing, two.safetensors first. All files that "
        f"model.safetensors.index.json names are needed. {_COPY_FOLDER}",
    ),
    ModelCase(
        "a shard outside the folder",
        in_turn(
            rename(_WEIGHTS, "one.safetensors"),
            write(_INDEX, '{"metadata": {}, "weight_map": {"a": "../member/adapter_model.safetensors"}}'),
        ),
        _BASE + "model.safetensors.index.json names '../member/adapter_model.safetensors', which is not in the "
        f"folder itself. The weight files have to lie beside the index. {_COPY_FOLDER}",
    ),
    ModelCase(
        "a weight that is not in its shard",
        in_turn(
            rename(_WEIGHTS, "one.safetensors"),
            write(_INDEX, '{"metadata": {}, "weight_map": {"a": "one.safetensors"}}'),
        ),
        _BASE + "model.safetensors.index.json says that a is in one.safetensors, which does not hold it. The files "
        f"of one model are needed. {_COPY_FOLDER}",
    ),
]

WEIGHTS = [
    *(
        ModelCase(
            f"a weight that is {value}",
            tensors(_WEIGHTS, lambda arrays, value=value: _one(arrays, value)),
            _LOADED + f"the weight {_UP} holds NaN or infinity. Finite weights are needed. Copy or download the "
            "model again; a float16 overflow goes away with model.dtype=bfloat16.",
            by="sft",
        )
        for value in (float("nan"), float("-inf"))
    ),
    ModelCase(
        "a weight that is missing",
        tensors(_WEIGHTS, lambda arrays: arrays.pop(_UP)),
        _LOADED + f"1 weights are missing in the files, {_UP} first. Every weight of the model is "
        "needed, or it would be random. Copy or download the model again.",
        by="sft",
    ),
    ModelCase(
        "a weight of another shape",
        tensors(_WEIGHTS, lambda arrays: arrays.update({_UP: numpy.zeros((60, 32), numpy.float32)})),
        _LOADED + f"1 weights have another shape than config.json says, {_UP} first: (60, 32) in the files, (64, "
        "32) by config.json. Configuration and weights of one model are needed. Copy or download the model again.",
        by="sft",
    ),
    ModelCase(
        "a config.json of a smaller model",
        edit("base/config.json", num_hidden_layers=1),
        _LOADED + "the files hold 2 blocks, config.json has 1. Configuration and weights of one model are needed. "
        "Take the config.json that belongs to these weights.",
        by="sft",
    ),
    ModelCase(
        "a config.json with another vocabulary",
        edit("base/config.json", vocab_size=400),
        _BASE + "config.json has vocab_size 400, but model.embed_tokens.weight is of shape (320, 32). Configuration "
        f"and weights of one model are needed. {_COPY_FOLDER}",
    ),
]

CASES: list[ModelCase] = [*FILES, *WEIGHTS]
