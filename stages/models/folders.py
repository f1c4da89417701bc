"""Checks of a model folder by its files alone, without torch: what is missing, pickled or cut short.

The safetensors header is read by hand: 8 bytes little-endian length, a JSON header of that length with
`data_offsets` of every tensor, then the data (https://github.com/huggingface/safetensors#format). The largest
offset tells how long the file has to be, so a half-copied file is found without reading its weights.
"""

import json
import struct
from pathlib import Path
from typing import Any

from data.errors import ModelError

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
_MAX_HEADER_BYTES = 100_000_000


def check_model_folder(folder: Path, setting: str) -> None:
    """Refuse a folder that `from_pretrained` could not load, or only by unpickling.

    Args:
        folder: The folder of the base model.
        setting: `model.base` as the user wrote it, for the message.

    Raises:
        ModelError: A file is missing, damaged, cut short, or the weights are pickled.
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
    config = _read_json(folder / "config.json", where)
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(
            f"{where}: config.json has no `model_type`. It has to name an architecture of transformers. "
            "Take the config.json that belongs to these weights."
        )
    for path in _weight_files(folder, where):
        check_safetensors(path, where)
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise ModelError(
            f"{where}: no tokenizer. Needed is tokenizer.json, tokenizer.model, or vocab.json with "
            "merges.txt. Save the model's tokenizer into the folder with `tokenizer.save_pretrained(folder)`."
        )


def check_safetensors(path: Path, where: str) -> None:
    """Compare the header of a safetensors file with the file's size.

    Raises:
        ModelError: The header cannot be read or announces more or fewer bytes than there are.
    """
    size = path.stat().st_size
    remedy = "The file is damaged or only partly copied. Copy or download it again."
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ModelError(f"{where}: {path.name} has {size} bytes, too few for a safetensors header. {remedy}")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{where}: {path.name} announces a header of {length} bytes in a file of {size}. {remedy}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{where}: {path.name} has an unreadable safetensors header. {remedy}") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelError(f"{where}: {path.name} has {size} bytes, its header announces {expected}. {remedy}")


def spec_files(folder: Path, *, with_code: bool) -> list[Path]:
    """List the files that make the model what it is, sorted by name.

    Args:
        folder: A folder that passed `check_model_folder`.
        with_code: Whether Python files count, which `trust_remote_code` runs.
    """
    patterns = (*_SPEC_PATTERNS, "*.py") if with_code else _SPEC_PATTERNS
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _weight_files(folder: Path, where: str) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / WEIGHTS_INDEX).is_file():
        index = _read_json(folder / WEIGHTS_INDEX, where)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(
                f"{where}: {WEIGHTS_INDEX} has no `weight_map`. It has to name the file of every weight. "
                "Copy or download it again."
            )
        names = sorted({str(name) for name in weight_map.values()})
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{where}: {len(missing)} of {len(names)} weight files are missing, {missing[0]} first. All "
                f"files that {WEIGHTS_INDEX} names are needed. Copy or download the folder again."
            )
        return [folder / name for name in names]
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


def _read_json(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{where}: {path.name} is no JSON ({error}). A valid file is needed. Copy or download it again."
        ) from error
