"""Learning settings that SFT and reward model share. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from data.strict import Flag, StrictModel


class LearningConfig(StrictModel):
    """How an adapter is trained by one of Hugging Face's trainers."""

    learning_rate: float = Field(default=2.0e-4, gt=0, le=1)
    """Peak learning rate of AdamW."""

    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after the warm-up; `linear` and `cosine` end at 0."""

    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the optimizer steps with a rising learning rate."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""

    epochs: float = Field(default=1.0, gt=0, le=10_000)
    """Passes over the data."""

    max_steps: int | None = Field(default=None, ge=1, le=10**9)
    """Stop after this many optimizer steps, whatever `epochs` says."""

    batch_size: int = Field(default=32, ge=1)
    """Examples in one optimizer step, over all processes."""

    microbatch_size: int = Field(default=8, ge=1)
    """Examples in one forward pass of one process. Divides `batch_size / num_processes`."""

    max_length: int = Field(default=1024, ge=2)
    """Longest prompt and response, in tokens. Longer examples are dropped and counted."""

    gradient_checkpointing: Flag = False
    """Recompute activations in the backward pass: less memory, a third more time."""
