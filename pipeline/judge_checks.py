"""A judge among the labelers before anything starts: what it is asked, and its token. Imports nothing heavy."""

import os
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError
from data.questions import read_template
from pipeline.config import PipelineConfig
from rewards.judge_questions import PAIR_FIELDS, PAIR_TEMPLATE
from stages.preferences.config import JudgeLabelerConfig

_SETTING = "preferences.labeler.judge"


def labeler_question(labeler: JudgeLabelerConfig, config_dir: Path | None) -> str:
    """What the judge is asked.

    Raises:
        ConfigError: Its file is missing, or lacks a field.
    """
    return read_template(labeler.judge.template, PAIR_TEMPLATE, PAIR_FIELDS, config_dir, f"{_SETTING}.template")


def judge_problems(config: PipelineConfig, config_dir: Path | None) -> Iterator[str]:
    """One message for each thing that would keep the judge from being asked. It is not asked here."""
    labeler = None if config.preferences is None else config.preferences.labeler
    if not isinstance(labeler, JudgeLabelerConfig):
        return
    try:
        labeler_question(labeler, config_dir)
    except UserError as error:
        yield str(error)
    name = labeler.judge.endpoint.token_env
    if name and not os.environ.get(name):
        yield (
            f"{_SETTING}.endpoint.token_env={name}: this environment variable is not set; put the chat endpoint's "
            f"token there, or remove the setting"
        )
