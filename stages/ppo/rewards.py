"""Puts the reward together: the components of the configuration, each reward model loaded once."""

from collections.abc import Callable
from pathlib import Path

from rewards.composite import CompositeReward, Judge, member_columns
from rewards.composite_config import EnsembleRewardConfig, LearnedRewardConfig
from rewards.contract import EnsembleRewardFunction
from rewards.factory import build_reward
from stages.models.reward_loading import REWARD_ROLE
from stages.models.sources import adapter_folder
from stages.ppo.config import PPOConfig

LoadJudge = Callable[[Path, str], EnsembleRewardFunction]
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
    loaded: dict[Path, EnsembleRewardFunction] = {}

    def judge(folder: Path) -> EnsembleRewardFunction:
        place = folder.resolve()
        if place not in loaded:
            role = REWARD_ROLE if folder == own else f"{REWARD_ROLE}-{len(loaded) + 1}"
            loaded[place] = load(folder, role)
        return loaded[place]

    judges: list[Judge] = []
    for component in config.reward_components:
        match component:
            case LearnedRewardConfig(path=None):
                judges.append(Judge.of(component, judge(own)))
            case LearnedRewardConfig(path=str() as name):
                judges.append(Judge.of(component, judge(adapter_folder(name, config_dir, f"{component.setting}.path"))))
            case EnsembleRewardConfig():
                setting = f"{component.setting}.members"
                named = [adapter_folder(name, config_dir, setting) for name in component.members]
                models = [judge(folder) for folder in ([own] if component.with_own else []) + named]
                columns = member_columns(component, [each.num_members for each in models])
                judges += [Judge(*each) for each in zip(columns, (each.by_member for each in models), strict=True)]
            case _:
                judges.append(Judge.of(component, build_reward(component, config_dir, answers)))
    return CompositeReward(config.reward_components, judges)
