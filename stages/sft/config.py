"""Settings of supervised fine-tuning. Imports pydantic only."""

from collections.abc import Iterator

from pydantic import Field

from data.strict import Contradiction
from stages.learning import LearningConfig


class SFTConfig(LearningConfig):
    """Supervised fine-tuning on the demonstrations; the loss counts response tokens only."""

    eval_every_steps: int | None = Field(default=None, ge=1)
    """Steps between validations; the adapter with the least validation loss is kept. Default: 4 in the stage."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Validations that would never come."""
        if self.eval_every_steps is not None and self.max_steps is not None and self.eval_every_steps > self.max_steps:
            yield Contradiction(
                ("eval_every_steps", "max_steps"),
                f"eval_every_steps={self.eval_every_steps} is more than max_steps={self.max_steps}: no validation "
                f"would come and choose the adapter that is kept; use eval_every_steps={self.max_steps} or less",
            )
