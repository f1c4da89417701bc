"""From hidden states to logits, without the whole model, so that the vocabulary never exists for a whole batch.

Model families do more than one product there: Gemma 2 caps the logits, Cohere scales them up, Granite down.
Which of these a model does is read from its configuration and then *checked* against its own logits on a
probe; a head that fails the check is left to the model itself.

Shape legend: N = rows, D = hidden size, V = vocabulary.
"""

import logging
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 8


@dataclass(frozen=True)
class LogitsHead:
    """The output embedding and what the model's family does to its result.

    Attributes:
        projection: The model's output embedding, bias included where it has one.
        scale: The logits are multiplied by this.
        soft_cap: The logits become `cap * tanh(logits / cap)` (Gemma 2, section 2).
    """

    projection: nn.Module
    scale: float
    soft_cap: float | None

    def __call__(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits of each row."""
        logits: Tensor = self.projection(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    @classmethod
    def of(cls, model: Any) -> Self | None:
        """The head of a loaded causal language model.

        Args:
            model: A `PreTrainedModel` with a language-model head.

        Returns:
            The head, or None if its logits differ from the model's own on the probe; a warning says so.
        """
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        soft_cap = getattr(config, "final_logit_softcapping", None)
        head = cls(model.get_output_embeddings(), scale, None if soft_cap is None else float(soft_cap))
        if head._agrees_with(model):
            return head
        logger.warning(
            "%s: the logits of its head are not those of output embedding, scale and soft cap; the model's own "
            "head is used, which holds the logits of a whole microbatch. Lower the microbatch size if memory runs out.",
            type(model).__name__,
        )
        return None

    @torch.no_grad()
    def _agrees_with(self, model: Any) -> bool:
        vocabulary = model.get_output_embeddings().weight.shape[0]
        ids = (torch.arange(_PROBE_TOKENS, device=model.device) % vocabulary).unsqueeze(0)
        expected = model(input_ids=ids, use_cache=False).logits.float()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        found = self(hidden).float()
        # The products are the same ones; only the kernel's blocking may differ between two calls.
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-2)
