"""Demonstrations end to end in one row, without padding, where the model keeps them apart.

The examples of an optimizer step are those that it has without packing, and so is its loss but for rounding: one pass
takes the same `microbatch_size` examples, as one row. Position ids that start again at 0 tell transformers where the
next example begins. FlashAttention reads the bounds; other implementations get a mask over the row.

Whether a model keeps to that is seen, not believed: what stands before an example must not change its logits.

Shape legend: T = tokens of a row, V = vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

_LENGTHS = (9, 13)
_TOLERANCE = 0.1
"""Of what an example without a bound before it would see; rounding in bfloat16 is far below."""


@dataclass(frozen=True)
class Packing:
    """What became of `sft.packing`.

    Attributes:
        is_used: Whether rows are packed.
        by: `flash_attention` or `mask`, what keeps the examples apart; `none` where rows are padded.
        reason: In words.
    """

    is_used: bool
    by: str
    reason: str


def decide_packing(model: PreTrainedModel) -> Packing:
    """See whether a model can be trained on packed rows.

    Args:
        model: In evaluation mode; one pass over a few tokens is made.
    """
    attention = str(model.config.get_text_config()._attn_implementation)
    problem = packing_problem(model)
    if problem is not None:
        return Packing(False, "none", f"rows are padded: {problem}")
    if "flash" in attention:
        return Packing(True, "flash_attention", "FlashAttention keeps the examples of a row apart")
    return Packing(
        True,
        "mask",
        f"no FlashAttention (attention is {attention}): a mask keeps the examples of a row apart, and the cost of "
        f"attention grows with the square of all tokens of a pass",
    )


def packing_problem(model: PreTrainedModel) -> str | None:
    """Why a model cannot be trained on packed rows; None where it can.

    An example is passed alone, behind another one, behind that one with other tokens, and as its continuation. What
    the tokens before it change of its logits is compared with what they change in a continuation.
    """
    generator = torch.Generator().manual_seed(0)
    size = int(model.config.get_text_config().vocab_size)
    before, example = (torch.randint(size, (length,), generator=generator).tolist() for length in _LENGTHS)
    other = [(token + size // 2) % size for token in before]
    try:
        behind, behind_other = (_logits(model, [first, example])[len(first) :] for first in (before, other))
        joined, joined_other = (_logits(model, [first + example])[len(first) :] for first in (before, other))
        alone = _logits(model, [example])
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        return f"the model takes no packed rows ({type(error).__name__}: {reason})"
    if _distance(behind, behind_other) > _TOLERANCE * _distance(joined, joined_other):
        return "what stands before an example in its row changes what the model makes of it"
    if _distance(behind, alone) > _TOLERANCE * _distance(joined, alone):
        return "the model does not count positions anew for each example of a row"
    return None


def packed_collator(pad_token_id: int) -> DataCollatorForLanguageModeling:
    """Puts the examples of a microbatch into one row; the first token of each is not learned from the one before."""
    return DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=True)


def _logits(model: PreTrainedModel, examples: Sequence[Sequence[int]]) -> Float[Tensor, "T V"]:
    batch: dict[str, Any] = packed_collator(pad_token_id=0)([{"input_ids": list(ids)} for ids in examples])
    inputs = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    with torch.no_grad():
        logits: Tensor = model(**inputs, use_cache=False).logits[0]
    return logits.float()


def _distance(first: Float[Tensor, "T V"], second: Float[Tensor, "T V"]) -> float:
    return float((first - second).abs().max())
