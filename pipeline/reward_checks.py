"""The components of a reward before anything starts: their files, patterns, variables. Imports nothing heavy."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.endpoint_config import PATIENCE, ChatEndpointConfig
from data.errors import ConfigError, UserError
from data.questions import read_template
from pipeline.config import PipelineConfig
from rewards.composite_config import (
    EnsembleRewardConfig,
    LearnedRewardConfig,
    PythonRewardConfig,
    RemoteRewardConfig,
    RewardConfig,
)
from rewards.function import function_digest, function_file
from rewards.judge_config import JudgeRewardConfig
from rewards.judge_questions import GRADE_FIELDS, GRADE_TEMPLATE
from rewards.rule_config import (
    ExactMatchRewardConfig,
    MathRewardConfig,
    RegexRewardConfig,
    SentimentRewardConfig,
    WordListRewardConfig,
)
from stages.artifacts import combine_digests, file_digest, file_digests
from stages.models.adapters import check_reward_model
from stages.models.own_base import read_classifier, read_own_base
from stages.models.reward_members import num_members
from stages.models.sources import adapter_folder, base_spec_digest

_ASKED = ("python", "remote")
_ASKING = ("timeout_seconds", "max_retries", "token_env", "batch_size", "health")


def reward_problems(config: PipelineConfig, config_dir: Path | None) -> Iterator[str]:
    """One message for each component that could not judge. No server is asked."""
    for component in _components(config):
        try:
            _check(component, config, config_dir)
        except UserError as error:
            yield str(error)


def missing_variables(config: PipelineConfig) -> Iterator[str]:
    """One message for each variable that a component names and nobody has set."""
    for component in _components(config):
        match component:
            case RemoteRewardConfig(token_env=str() as name):
                asked = [(f"{component.setting}.token_env", name, "reward server")]
            case JudgeRewardConfig(endpoint=ChatEndpointConfig(token_env=str() as name)):
                asked = [(f"{component.setting}.endpoint.token_env", name, "chat endpoint")]
            case _:
                asked = []
        for setting, name, kind in asked:
            if not os.environ.get(name):
                yield (
                    f"{setting}={name}: this environment variable is not set; put the {kind}'s token there, or remove "
                    f"the setting"
                )


def needs_packages(config: PipelineConfig) -> tuple[str, ...]:
    """The distributions whose version shapes a score, beside those that every stage needs."""
    found: dict[str, None] = {}
    for component in _components(config):
        match component:
            case MathRewardConfig():
                found |= dict.fromkeys(("math-verify", "latex2sympy2_extended", "sympy", "regex"))
            case RegexRewardConfig() | ExactMatchRewardConfig() | WordListRewardConfig():
                found |= dict.fromkeys(("regex",))
            case SentimentRewardConfig():
                found |= dict.fromkeys(("vaderSentiment",))
    return tuple(found)


def reward_files(config: PipelineConfig, config_dir: Path | None) -> dict[str, Any]:
    """Digests of the files that components name, by component: their bytes count, wherever they lie.

    Raises:
        UserError: One is missing.
    """
    found: dict[str, Any] = {}
    for component in _components(config):
        folders = model_folders(component, config_dir)
        if folders:
            found[component.key] = [reward_model_digest(folder, config_dir) for folder in folders]
        elif isinstance(component, PythonRewardConfig):
            found[component.key] = function_digest(component, config_dir)
        elif isinstance(component, WordListRewardConfig):
            from rewards.word_lists import words_file

            found[component.key] = file_digest(words_file(component, config_dir))
        elif isinstance(component, JudgeRewardConfig) and component.template is not None:
            found[component.key] = text_digest(judge_template(component, config_dir))
    return found


def reward_model_digest(folder: Path, config_dir: Path | None) -> str:
    """Digest of a reward model that the configuration names by folder, with that of the base that it brings.

    Raises:
        ModelError: That base is not there.
    """
    ready = read_classifier(folder)
    own = read_own_base(folder) if ready is None else ready.as_model()
    digests = file_digests(folder)
    if own is not None:
        digests[""] = base_spec_digest(own, config_dir)  # a name that no file has
    return combine_digests(digests)


def without_asking(section: dict[str, Any]) -> dict[str, Any]:
    """PPO's section without how patiently a function or server is asked, which says nothing of what it answers."""
    rewards = [
        {name: value for name, value in each.items() if each["type"] not in _ASKED or name not in _ASKING}
        for each in section.get("rewards") or []
    ]
    return {**section, "rewards": rewards or None} if "rewards" in section else section


def without_patience(section: Any) -> Any:
    """A section without how patiently an endpoint is asked, and what it costs."""
    if isinstance(section, dict):
        return {
            key: {name: each for name, each in value.items() if name not in PATIENCE}
            if key == "endpoint" and isinstance(value, dict)
            else without_patience(value)
            for key, value in section.items()
        }
    return [without_patience(each) for each in section] if isinstance(section, list) else section


def judge_template(component: JudgeRewardConfig, config_dir: Path | None) -> str:
    """What a judge is asked.

    Raises:
        ConfigError: Its file is missing, or lacks a field.
    """
    return read_template(component.template, GRADE_TEMPLATE, GRADE_FIELDS, config_dir, f"{component.setting}.template")


def text_digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def model_folders(component: RewardConfig, config_dir: Path | None) -> list[Path]:
    """The folders of the reward models that a component names, the run's own left out.

    Raises:
        ModelError: No adapter is there.
    """
    match component:
        case LearnedRewardConfig(path=str() as name):
            return [adapter_folder(name, config_dir, f"{component.setting}.path")]
        case EnsembleRewardConfig(members=names):
            return [adapter_folder(name, config_dir, f"{component.setting}.members") for name in names]
        case _:
            return []


def _components(config: PipelineConfig) -> list[RewardConfig]:
    return [] if config.ppo is None else config.ppo.reward_components


def _check(component: RewardConfig, config: PipelineConfig, config_dir: Path | None) -> None:
    match component:
        case LearnedRewardConfig() | EnsembleRewardConfig():
            folders = model_folders(component, config_dir)
            for folder in folders:
                check_reward_model(folder, config.model, config_dir=config_dir)
            if isinstance(component, EnsembleRewardConfig):
                _check_members(component, config, folders)
        case PythonRewardConfig():
            function_file(component, config_dir)
        case RegexRewardConfig():
            from rewards.patterns import compiled

            compiled(component.pattern, f"{component.setting}.pattern")
        case ExactMatchRewardConfig() | MathRewardConfig():
            from rewards.matching import AnswerExtractor

            AnswerExtractor(component, component.setting)
        case JudgeRewardConfig():
            judge_template(component, config_dir)
        case WordListRewardConfig():
            from rewards.word_lists import read_words, words_file

            read_words(words_file(component, config_dir), f"{component.setting}.words")
        case _:
            pass


def _check_members(component: EnsembleRewardConfig, config: PipelineConfig, folders: list[Path]) -> None:
    ensemble = None if config.reward_model is None else config.reward_model.ensemble
    own = 0 if not component.with_own else 1 if ensemble is None else ensemble.members
    if own + sum(map(num_members, folders)) < 2:
        raise ConfigError(
            f"{component.setting}: has one member, which agrees with itself; name another reward model in `members`, "
            f"train an ensemble (`reward_model.ensemble`), or use `{{type: learned}}`"
        )
