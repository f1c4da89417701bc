"""Settings of supervised fine-tuning. Imports pydantic only."""

from pydantic import Field

from stages.learning import LearningConfig


class SFTConfig(LearningConfig):
    """Supervised fine-tuning on the demonstrations; the loss counts response tokens only."""

    eval_every_steps: int | None = Field(default=None, ge=1)
    """Steps between validations; the adapter with the least validation loss is kept. Default: 4 in the stage."""
