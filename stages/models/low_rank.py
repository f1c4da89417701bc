"""PEFT's plain LoRA layer with fewer copies: the same numbers, bit for bit where `alpha / rank` is a power of two.

With a base in bfloat16 and adapters in float32, PEFT keeps a float32 copy of every input for the backward and makes
four passes over the output of each layer. Here the input is kept as it came and cast again in the backward, the scale
is applied to the r numbers of each token instead of the layer's width, and the base's result is added in place.

Shape legend: *dims = any leading shape, usually B S; I = inputs, O = outputs of the layer, r = rank.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn


class LowRankLinear(LoraLinear):  # type: ignore[misc]
    """PEFT's plain LoRA layer, computed by `add_low_rank` where exactly one plain adapter is active."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output; all but the plain case is left to PEFT."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or args or kwargs or len(names) != 1 or not _is_plain(self, names[0]):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        (name,) = names
        output = self.base_layer(x)
        return add_low_rank(output, x, self.lora_A[name].weight, self.lora_B[name].weight, float(self.scaling[name]))


def save_copies(modules: Iterable[nn.Module]) -> None:
    """Turn PEFT's plain LoRA layers into `LowRankLinear`; others, like those of a 4-bit base, stay as they are.

    The class is swapped, and no forward put on each object: `torch.compile` takes layers of one class for alike.
    """
    for module in modules:
        if type(module) is LoraLinear:
            module.__class__ = LowRankLinear


def add_low_rank(
    output: Float[Tensor, "*dims O"],
    inputs: Float[Tensor, "*dims I"],
    a: Float[Tensor, "r I"],
    b: Float[Tensor, "O r"],
    scale: float,
) -> Float[Tensor, "*dims O"]:
    """Add an adapter's share to a layer's output (Hu et al. 2021, section 4.1, https://arxiv.org/abs/2106.09685).

        output + scale * inputs A^T B^T, summed in the adapter's type, in the type of `output`

    Args:
        output: What the frozen layer computes from `inputs`.
        inputs: May be of another type than the adapter.
        a: Weights A.
        b: Weights B.
        scale: alpha / r.
    """
    added: Tensor = _AddLowRank.apply(output, inputs, a, b, scale)  # type: ignore[no-untyped-call]
    return added


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        projected = (inputs.flatten(0, -2).to(a.dtype) @ a.t()) * scale
        added = projected @ b.t()
        added += output.flatten(0, -2)
        ctx.save_for_backward(inputs, projected, a, b)
        ctx.scale = scale
        return added.to(output.dtype).view(output.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, projected, a, b = ctx.saved_tensors
        _, needs_inputs, needs_a, needs_b, _ = ctx.needs_input_grad
        flat = grad.flatten(0, -2).to(b.dtype)
        inner = (flat @ b) * ctx.scale
        return (
            grad,
            (inner @ a).to(inputs.dtype).view(inputs.shape) if needs_inputs else None,
            inner.t() @ inputs.flatten(0, -2).to(a.dtype) if needs_a else None,
            flat.t() @ projected if needs_b else None,
            None,
        )


def _is_plain(layer: LoraLinear, name: str) -> bool:
    dropout = layer.lora_dropout[name]
    return (
        name not in layer.lora_variant
        and layer.lora_B[name].bias is None
        and (isinstance(dropout, nn.Identity) or getattr(dropout, "p", 1.0) == 0.0)
    )
