"""Trainers for the tests of this folder."""

from typing import Any

import pytest

from stages.ppo.config import PPOConfig
from stages.ppo.trainer import PPOTrainer
from tests.unit.stages.parts import FoldersOf
from tests.unit.stages.ppo.trainers import MakeTrainer, build_trainer, ppo_config


@pytest.fixture
def make(folders: FoldersOf) -> MakeTrainer:
    """Give a function that makes a trainer on fresh roles."""

    def build(config: PPOConfig | None = None, **parts: Any) -> PPOTrainer:
        return build_trainer(folders("llama"), config or ppo_config(), **parts)

    return build
