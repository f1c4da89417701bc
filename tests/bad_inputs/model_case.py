"""One case of a model at fault: what is done to files that were right, who finds it, and the whole message."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Damage = Callable[[Path], object]
"""Changes a folder with `base`, a small Llama, and `member`, a reward model on it."""


@dataclass(frozen=True)
class ModelCase:
    """A case.

    Attributes:
        name: Of the test.
        damage: What is done to the files.
        message: All that is said, paths without the test's folder; or its three parts, where the middle of what is said
            is another library's.
        model: Settings of the `model` section.
        by: What finds it first: `validate`; the stage `sft` where transformers has to tell, on plain prompts or on
            `chat` messages; or the loading of a `reward` model where its text has to be read.
    """

    name: str
    damage: Damage
    message: str | tuple[str, str, str]
    model: Mapping[str, Any] = field(default_factory=dict)
    by: Literal["validate", "sft", "chat", "reward"] = "validate"


def nothing(folder: Path) -> None:
    """Leave the files as they are."""


def remove(name: str) -> Damage:
    """Delete a file."""
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str | bytes) -> Damage:
    """Put another content into a file."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(raw)


def rename(name: str, new: str) -> Damage:
    """Give a file another name in its folder."""
    return lambda folder: (folder / name).rename((folder / name).parent / new)


def cut(name: str, size: int) -> Damage:
    """Cut a file to so many bytes; below 0, that many off its end."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:size])

    return damage


def edit(name: str, **values: Any) -> Damage:
    """Change keys of a JSON file; None removes one."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8")) | values
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return damage


def tensors(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the arrays of a safetensors file."""

    def damage(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        arrays = load_file(folder / name)
        change(arrays)
        save_file(arrays, folder / name, metadata={"format": "pt"})

    return damage


def header(name: str, entries: Mapping[str, Any], data: bytes) -> Damage:
    """Write a safetensors file by hand."""
    raw = json.dumps(entries).encode()
    return write(name, len(raw).to_bytes(8, "little") + raw + data)


def in_turn(*damages: Damage) -> Damage:
    """Do one after the other."""

    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


def add_token(folder: Path, token: str, number: int) -> None:
    """Give the tokenizer a special token."""
    path = folder / "base" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": token})
    path.write_text(json.dumps(content), encoding="utf-8")
