"""What judges by a component."""

from pathlib import Path

from rewards.composite_config import PythonRewardConfig, RemoteRewardConfig, RewardConfig
from rewards.contract import RewardFunction
from rewards.counts import LengthReward, RepetitionReward
from rewards.function import PythonReward
from rewards.judge_config import JudgeRewardConfig
from rewards.rule_config import (
    CharacterShareComponentConfig,
    ExactMatchRewardConfig,
    FormatRewardConfig,
    LengthRewardConfig,
    MathRewardConfig,
    RegexRewardConfig,
    RepetitionRewardConfig,
    SentimentRewardConfig,
    WordListRewardConfig,
)
from rewards.rules import CharacterShareReward, VaderReward
from rewards.templates import FormatReward


def build_reward(config: RewardConfig, config_dir: Path | None, answers: Path) -> RewardFunction:
    """Make it. Reward models, which need a base, are the stages' own affair.

    Args:
        config: Which.
        config_dir: Folder of the configuration file, for relative paths in it.
        answers: File in which the answers of a judge are kept, so that a resumed stage gets the same ones.

    Raises:
        ConfigError: It cannot be made.
        StageError: A server that it asks is not well.
    """
    match config:  # packages that not all of them need are imported where they are
        case PythonRewardConfig():
            return PythonReward(config, config_dir)
        case RemoteRewardConfig():
            from rewards.remote import RemoteReward

            remote = RemoteReward(config)
            remote.check_health()
            return remote
        case JudgeRewardConfig():
            from rewards.judge import JudgeReward

            return JudgeReward(config, config_dir, answers)
        case RegexRewardConfig():
            from rewards.matching import RegexReward

            return RegexReward(config)
        case ExactMatchRewardConfig():
            from rewards.matching import ExactMatchReward

            return ExactMatchReward(config)
        case MathRewardConfig():
            from rewards.math_answers import MathReward

            return MathReward(config)
        case WordListRewardConfig():
            from rewards.word_lists import WordListReward

            return WordListReward(config, config_dir)
        case LengthRewardConfig():
            return LengthReward(config)
        case RepetitionRewardConfig():
            return RepetitionReward(config)
        case FormatRewardConfig():
            return FormatReward(config)
        case SentimentRewardConfig():
            return VaderReward(config)
        case CharacterShareComponentConfig():
            return CharacterShareReward(config)
        case _:
            raise ValueError(f"a component of type {config.type} judges by a model")
