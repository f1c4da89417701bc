"""Checks of a model folder by its files alone, without torch: what is missing, pickled, cut short or no language model.

No weight is read; the headers of the safetensors files say what is in them (`stages.models.safetensors_files`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import ModelError
from stages.models.safetensors_files import Tensor, check_safetensors

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_SPEC_PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.safetensors",
    WEIGHTS_INDEX,
)
# Ends of the names of architectures that do not predict a next token. What else there is, transformers has to tell.
_NO_LANGUAGE_MODELS = (
    "ForMaskedLM", "ForPreTraining", "ForImageClassification", "ForMaskedImageModeling", "ForMultipleChoice",
    "ForNextSentencePrediction", "ForObjectDetection", "ForQuestionAnswering", "ForTokenClassification",
)  # fmt: skip
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def check_model_folder(folder: Path, setting: str) -> dict[str, Tensor]:
    """Refuse a folder that `from_pretrained` could not load, or only by unpickling.

    Args:
        folder: The folder of the base model.
        setting: `model.base` as the user wrote it, for the message.

    Returns:
        The tensors of the weights by name.

    Raises:
        ModelError: A file is missing, damaged, cut short, or the weights are pickled; the model is no causal language
            model, or quantised already.
    """
    where = f"model.base={setting!r} ({folder})"
    if not folder.is_dir():
        raise ModelError(f"{where}: no such folder. A model folder is needed. Correct the path.")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{where}: holds a PEFT adapter, no model. The base is the model below the adapters. "
                "Name the base model that the adapter was trained on."
            )
        raise ModelError(
            f"{where}: config.json is missing. A model folder has config.json, *.safetensors and a "
            "tokenizer, as `save_pretrained` writes them. Save the model again or correct the path."
        )
    config = read_json(folder / "config.json", where)
    check_config(config, where)
    tensors = _weights(folder, where)
    if not tensors:
        raise ModelError(
            f"{where}: the weight files hold no tensor. The weights of the model are needed. Copy or download the "
            "folder again."
        )
    _check_embedding(config, tensors, where)
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise ModelError(
            f"{where}: no tokenizer. Needed is tokenizer.json, tokenizer.model, or vocab.json with "
            "merges.txt. Save the model's tokenizer into the folder with `tokenizer.save_pretrained(folder)`."
        )
    return tensors


def check_config(config: Any, where: str) -> None:
    """Refuse what is known from config.json to be no causal language model with plain weights.

    Args:
        config: What config.json holds.
        where: Begins the message.

    Raises:
        ModelError: See above.
    """
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise ModelError(
            f"{where}: config.json has no `model_type`. It has to name an architecture of transformers. "
            "Take the config.json that belongs to these weights."
        )
    if config.get("is_encoder_decoder") is True:
        raise ModelError(
            f"{where}: config.json describes an encoder-decoder model ({model_type}). A decoder that goes on with its "
            "prompt is needed, a causal language model. Use a base of the Llama, Qwen2, Mistral, Gemma, GPT-2, "
            "GPT-NeoX or OPT families."
        )
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    if architectures and all(name.endswith(_NO_LANGUAGE_MODELS) for name in architectures):
        raise ModelError(
            f"{where}: config.json names the architecture {architectures[0]}, which predicts no next token. A causal "
            "language model is needed. Use a base of the Llama, Qwen2, Mistral, Gemma, GPT-2, GPT-NeoX or OPT families."
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ModelError(
            f"{where}: the weights are quantised already (quantization_config in config.json, method {method}). Plain "
            "weights are needed, which `model.quantization: nf4` quantises while they are loaded. Name the model that "
            "this one was made from."
        )


def vocabulary_rows(folder: Path, where: str) -> int | None:
    """Rows of the embedding as config.json has them; None where it leaves them to the architecture's default.

    Args:
        folder: A folder that passed `check_model_folder`.
        where: Begins the message.
    """
    return _vocabulary_size(read_json(folder / "config.json", where))


def read_json(path: Path, where: str) -> Any:
    """Read a file of a model's folder.

    Raises:
        ModelError: It is no JSON, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(
            f"{where}: {path.name} is no JSON ({error}). A valid file is needed. Copy or download it again."
        ) from error


def spec_files(folder: Path, *, with_code: bool) -> list[Path]:
    """List the files that make the model what it is, sorted by name.

    Args:
        folder: A folder that passed `check_model_folder`.
        with_code: Whether Python files count, which `trust_remote_code` runs.
    """
    patterns = (*_SPEC_PATTERNS, "*.py") if with_code else _SPEC_PATTERNS
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _check_embedding(config: Any, tensors: Mapping[str, Tensor], where: str) -> None:
    """Compare the vocabulary of config.json with the embedding, where one tensor alone can be it."""
    rows = _vocabulary_size(config)
    found = {name: tensor.shape for name, tensor in tensors.items() if name.endswith(_EMBEDDINGS)}
    if rows is None or len(found) != 1:
        return
    ((name, shape),) = found.items()
    if shape[:1] != (rows,):
        raise ModelError(
            f"{where}: config.json has vocab_size {rows}, but {name} is of shape {shape}. Configuration and weights "
            "of one model are needed. Copy or download the folder again."
        )


def _vocabulary_size(config: Any) -> int | None:
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    return size if isinstance(size, int) else None


def _weights(folder: Path, where: str) -> dict[str, Tensor]:
    """The tensors of all weight files."""
    if (folder / WEIGHTS_FILE).is_file():
        return check_safetensors(folder / WEIGHTS_FILE, where)
    if (folder / WEIGHTS_INDEX).is_file():
        return _sharded_weights(folder, where)
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{where}: the weights are pickled ({pickled[0]}), which can run code when they are loaded. "
            "Weights in safetensors are needed. If you trust the file, convert it once: "
            "`AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)`."
        )
    raise ModelError(
        f"{where}: no weights. {WEIGHTS_FILE}, or {WEIGHTS_INDEX} with its files, is needed. "
        "Copy or download the folder again."
    )


def _sharded_weights(folder: Path, where: str) -> dict[str, Tensor]:
    index = read_json(folder / WEIGHTS_INDEX, where)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(
            f"{where}: {WEIGHTS_INDEX} has no `weight_map`. It has to name the file of every weight. "
            "Copy or download it again."
        )
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelError(
                f"{where}: {WEIGHTS_INDEX} names {name!r}, which is not in the folder itself. The weight files have to "
                "lie beside the index. Copy or download the folder again."
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{where}: {len(missing)} of {len(names)} weight files are missing, {missing[0]} first. All "
            f"files that {WEIGHTS_INDEX} names are needed. Copy or download the folder again."
        )
    if not isinstance(index.get("metadata"), dict):
        raise ModelError(
            f"{where}: {WEIGHTS_INDEX} has no `metadata`. transformers reads it, though it may be empty. Copy or "
            'download the file again, or add `"metadata": {}` to it.'
        )
    shards = {name: check_safetensors(folder / name, where) for name in names}
    for weight, name in weight_map.items():
        if weight not in shards[str(name)]:
            raise ModelError(
                f"{where}: {WEIGHTS_INDEX} says that {weight} is in {name}, which does not hold it. The files of one "
                "model are needed. Copy or download the folder again."
            )
    return {weight: tensor for shard in shards.values() for weight, tensor in shard.items()}
