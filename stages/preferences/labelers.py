"""From the configuration to the labeler. The only place that knows all of them."""

from collections.abc import Sequence

from stages.contract import StageContext
from stages.preferences.config import HumanLabelerConfig, JudgeLabelerConfig, PreferencesConfig, SimulatedLabelerConfig
from stages.preferences.contract import Labeler
from stages.preferences.human import HumanLabeler
from stages.preferences.labeling import LABELING
from stages.preferences.simulated import SimulatedLabeler


def build_labeler(config: PreferencesConfig, context: StageContext, priority: Sequence[float] | None = None) -> Labeler:
    """Make the labeler of a stage.

    Args:
        config: The stage's section.
        context: Its seed, and its folder in the run.
        priority: One number a prompt: how much there is to learn from its labels. None where nobody knows.
    """
    match config.labeler:
        case SimulatedLabelerConfig():
            return SimulatedLabeler(config.labeler)
        case JudgeLabelerConfig():
            from stages.preferences.judge_labeler import JudgeLabeler  # httpx, which the others do without

            return JudgeLabeler(config.labeler, context, only_finished=config.only_finished)
        case HumanLabelerConfig():
            return HumanLabeler(
                config.labeler,
                context.stage_dir / LABELING,
                seed=context.seed,
                only_finished=config.only_finished,
                priority=priority,
            )
