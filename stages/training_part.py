"""One of several trainings that a stage does one after the other, which share its steps and checkpoints."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingPart:
    """Where a training stands among those of its stage.

    Attributes:
        number: From 1.
        count: How many there are.
        num_steps: Optimizer steps of each.
        finished: Folder with what the trainings before this one made; each checkpoint holds it, too. None where there
            is nothing.
    """

    number: int = 1
    count: int = 1
    num_steps: int = 0
    finished: Path | None = None

    @property
    def first_step(self) -> int:
        """Steps of the stage before this training."""
        return (self.number - 1) * self.num_steps


WHOLE = TrainingPart()
"""The only training of a stage."""
