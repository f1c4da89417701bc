"""Puts the reward together: the components of the configuration, each reward model loaded once."""

from collections.abc import Callable
from pathlib import Path

from rewards.composite import CompositeReward, raw_columns
from rewards.composite_config import EnsembleRewardConfig, LearnedRewardConfig
from rewards.contract import RewardFunction
from rewards.factory import build_reward
from stages.models.reward_loading import REWARD_ROLE
from stages.models.sources import adapter_folder
from stages.ppo.config import PPOConfig

LoadJudge = Callable[[Path, str], RewardFunction]
"""Loads the reward model of a folder under the name of a role."""


def build_rewards(
    config: PPOConfig, load: LoadJudge, own: Path, config_dir: Path | None, answers: Path
) -> CompositeReward:
    """Make what judges.

    Args:
        config: Settings of PPO.
        load: Loads a reward model.
        own: Folder of the run's own one, which is loaded where a component asks for it.
        config_dir: Folder of the configuration file.
        answers: File in which the answers of judges are kept.

    Raises:
        UserError: A component cannot be made.
        StageError: A server that it asks is not well.
    """
    loaded: dict[Path, RewardFunction] = {}

    def judge(folder: Path) -> RewardFunction:
        place = folder.resolve()
        if place not in loaded:
            role = REWARD_ROLE if folder == own else f"{REWARD_ROLE}-{len(loaded) + 1}"
            loaded[place] = load(folder, role)
        return loaded[place]

    functions: dict[str, RewardFunction] = {}
    for component in config.reward_components:
        match component:
            case LearnedRewardConfig(path=None):
                found = [judge(own)]
            case LearnedRewardConfig(path=str() as name):
                found = [judge(adapter_folder(name, config_dir, f"{component.setting}.path"))]
            case EnsembleRewardConfig():
                setting = f"{component.setting}.members"
                members = [adapter_folder(name, config_dir, setting) for name in component.members]
                found = [judge(folder) for folder in ([own] if component.with_own else []) + members]
            case _:
                found = [build_reward(component, config_dir, answers)]
        functions |= dict(zip(raw_columns(component), found, strict=True))
    return CompositeReward(config.reward_components, functions)
