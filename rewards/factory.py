"""The reward function that a configuration names."""

from pathlib import Path

from rewards.config import FunctionRewardConfig, RemoteRewardConfig, RewardConfig
from rewards.contract import RewardFunction
from rewards.function import FunctionReward
from rewards.rules import build_rule_reward


def build_reward(config: RewardConfig, config_dir: Path | None) -> RewardFunction:
    """Make it.

    Args:
        config: Which.
        config_dir: Folder of the configuration file, for relative paths in it.

    Raises:
        ConfigError: It cannot be made.
    """
    match config:
        case FunctionRewardConfig():
            return FunctionReward(config, config_dir)
        case RemoteRewardConfig():
            from rewards.remote import RemoteReward  # httpx, which the others do without

            return RemoteReward(config)
        case _:
            return build_rule_reward(config)
