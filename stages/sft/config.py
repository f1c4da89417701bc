"""Settings of supervised fine-tuning. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from data.strict import Flag
from stages.learning import LearningConfig


class SFTConfig(LearningConfig):
    """Supervised fine-tuning on the demonstrations; the loss counts response tokens only."""

    loss_on: Literal["last_response", "all_responses"] = "last_response"
    """In conversations: the last turn of the assistant, or all of its turns. The earlier ones are what a policy reads,
    and not always what it should write: those of HH-RLHF hold what people rejected."""

    packing: Flag = False
    """Put the examples of a microbatch into one row, without padding. The loss is that of padded rows but for rounding.
    With FlashAttention the attention of each example costs what it costs alone; without, a mask over the row keeps them
    apart, and the stage says so. A model that does not keep them apart is trained on padded rows."""

    eval_every_steps: int | None = Field(default=None, ge=1)
    """Steps between validations; the adapter with the least validation loss is kept. Default: 4 in the stage."""
