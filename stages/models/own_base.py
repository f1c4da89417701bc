"""The base of a reward model that does not share the policy's: written beside its adapter.

Later stages get the artifact and the shared `model` section; this file tells them to load another base.
Imports neither torch nor transformers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from data.errors import ModelError
from stages.artifacts import write_json
from stages.models.config import ModelConfig

BASE_MODEL_FILE = "base_model.json"


def save_own_base(folder: Path, model: ModelConfig) -> None:
    """Write `base_model.json`: the section that the reward model was trained with, paths as the user wrote them."""
    write_json(folder / BASE_MODEL_FILE, model.model_dump(mode="json"))


def read_own_base(folder: Path) -> ModelConfig | None:
    """Read `base_model.json`; None for a reward model on the shared base, which has no such file.

    Raises:
        ModelError: The file is damaged.
    """
    path = folder / BASE_MODEL_FILE
    if not path.is_file():
        return None
    try:
        return ModelConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        reason = next(line.strip() for line in str(error).splitlines() if line.strip())
        raise ModelError(
            f"{path}: no readable model section ({reason}). A reward model on a base of its own says there which. "
            "Run the stage `reward_model` again."
        ) from error


@contextmanager
def names_own_base() -> Iterator[None]:
    """Let errors about `model.base` say `reward_model.model.base`, where that section is meant."""
    try:
        yield
    except ModelError as error:
        text = str(error)
        raise ModelError(f"reward_model.{text}" if text.startswith("model.") else f"reward_model: {text}") from error
