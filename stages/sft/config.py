"""Settings of supervised fine-tuning. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from stages.learning import LearningConfig


class SFTConfig(LearningConfig):
    """Supervised fine-tuning on the demonstrations; the loss counts response tokens only."""

    loss_on: Literal["last_response", "all_responses"] = "last_response"
    """In conversations: the last turn of the assistant, or all of its turns. The earlier ones are what a policy reads,
    and not always what it should write: those of HH-RLHF hold what people rejected."""

    eval_every_steps: int | None = Field(default=None, ge=1)
    """Steps between validations; the adapter with the least validation loss is kept. Default: 4 in the stage."""
