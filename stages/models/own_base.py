"""The base of a reward model that does not share the policy's: written beside its adapter, or in its place.

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
from stages.models.classifier_config import CLASSIFIER_FILE, ClassifierConfig
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


def save_classifier(folder: Path, config: ClassifierConfig) -> None:
    """Write `classifier.json`: which ready model this reward model is."""
    write_json(folder / CLASSIFIER_FILE, config.model_dump(mode="json"))


def read_classifier(folder: Path) -> ClassifierConfig | None:
    """Read `classifier.json`; None for a reward model that was trained here, which has no such file.

    Raises:
        ModelError: The file is damaged.
    """
    path = folder / CLASSIFIER_FILE
    if not path.is_file():
        return None
    try:
        return ClassifierConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        reason = next(line.strip() for line in str(error).splitlines() if line.strip())
        raise ModelError(
            f"{path}: names no ready reward model ({reason}). The file that the stage `reward_model` writes is needed. "
            "Run that stage again."
        ) from error


def is_apart(folder: Path) -> bool:
    """Whether a reward model has weights of its own instead of an adapter on the shared base."""
    return (folder / BASE_MODEL_FILE).is_file() or (folder / CLASSIFIER_FILE).is_file()


@contextmanager
def names_own_base(section: str = "model") -> Iterator[None]:
    """Let errors about `model.base` name the reward model's section, where that one is meant.

    Args:
        section: Its name below `reward_model`.
    """
    try:
        yield
    except ModelError as error:
        text = str(error)
        own = f"reward_model.{section}.{text.removeprefix('model.')}"
        raise ModelError(own if text.startswith("model.") else f"reward_model: {text}") from error
