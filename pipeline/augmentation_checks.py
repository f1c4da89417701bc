"""What `data.augmentation` reads beside the records, before anything starts. Imports nothing heavy."""

import os
from collections.abc import Iterator
from pathlib import Path

from data.augmentation.config import BackTranslationConfig, ParaphraseConfig
from data.augmentation.records import SETTING, step_files
from data.augmentation.wordnet import FILES
from data.config import DataConfig
from data.errors import UserError
from pipeline.reward_checks import text_digest
from stages.artifacts import combine_digests, file_digest


def augmentation_digests(data: DataConfig, config_dir: Path | None) -> dict[str, str]:
    """Digests of the database of words and of the questions, by setting: their bytes count, wherever they lie.

    Raises:
        ConfigError: One is missing.
    """
    return {
        setting: combine_digests({name: file_digest(found / name) for name in FILES})
        if isinstance(found, Path)
        else text_digest(found)
        for setting, found in step_files(data.augmentation, config_dir).items()
    }


def augmentation_problems(data: DataConfig, config_dir: Path | None) -> Iterator[str]:
    """One message for each thing that would keep prompts from being reworded. No endpoint is asked here."""
    try:
        step_files(data.augmentation, config_dir)
    except UserError as error:
        yield str(error)
    for number, step in enumerate(data.augmentation):
        if isinstance(step, ParaphraseConfig | BackTranslationConfig):
            name = step.endpoint.token_env
            if name and not os.environ.get(name):
                yield (
                    f"{SETTING}.{number}.endpoint.token_env={name}: this environment variable is not set; put the chat "
                    f"endpoint's token there, or remove the setting"
                )


def without_endpoints(data: DataConfig) -> DataConfig:
    """The configuration without the steps that would ask a server."""
    kept = tuple(step for step in data.augmentation if not isinstance(step, ParaphraseConfig | BackTranslationConfig))
    return data.model_copy(update={"augmentation": kept})
