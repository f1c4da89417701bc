"""From the configuration to the labeler. The only place that knows all of them."""

from stages.preferences.config import HumanLabelerConfig, PreferencesConfig, SimulatedLabelerConfig
from stages.preferences.contract import Labeler
from stages.preferences.simulated import SimulatedLabeler


def build_labeler(config: PreferencesConfig) -> Labeler:
    """Make the labeler of a stage.

    Args:
        config: The stage's section.
    """
    match config.labeler:
        case SimulatedLabelerConfig():
            return SimulatedLabeler(config.labeler)
        case HumanLabelerConfig():
            raise NotImplementedError  # made in the next commit
