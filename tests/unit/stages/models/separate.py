"""The shared base beside the same models loaded apart, the plain way of transformers and PEFT, in three precisions.

The separate models share no code of ours but the files they are loaded from: they are the oracle.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from data.collators import PromptResponseBatch
from stages.models.config import ModelConfig
from stages.models.quiet import quiet_transformers
from stages.models.shared_base import SharedBase
from tests.unit.stages.parts import FAMILIES, PAD, Folders, all_roles

Precision = Literal["float32", "bfloat16", "nf4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CASES = [(family, precision) for family in FAMILIES for precision in PRECISIONS]

GRADIENT_TOLERANCE: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 0.03, "nf4": 0.03}
"""Norm of the difference over the norm, of one parameter's gradient by two orders of the same sums.

bfloat16 rounds each result by up to 2^-9 = 0.002. The head's gradient is rounded row by row here and as one matrix
there, and some 20 roundings follow on the way down through two blocks: sqrt(20) * 0.002 = 0.009 is expected, and
0.008 to 0.017 was seen. A gradient under another adapter is off by more than 0.5.
"""


def precise_config(base: Path, precision: Precision) -> ModelConfig:
    """The model section in one of the precisions; NF4 computes in bfloat16, as in `configs/qlora_1gpu.yaml`."""
    return ModelConfig.model_validate(
        {
            "base": str(base),
            "dtype": "float32" if precision == "float32" else "bfloat16",
            "quantization": "nf4" if precision == "nf4" else "none",
            "tuning": {"rank": 4, "alpha": 8.0},
        }
    )


@dataclass(frozen=True)
class Pair:
    """The four roles on one base, and the models that they stand for.

    Attributes:
        shared: Ours, reference and policy from the policy artifact, reward and critic from the reward model.
        policy: `PeftModel` on `AutoModelForCausalLM`, of the policy artifact.
        judge: `PeftModel` on `AutoModelForSequenceClassification`, of the reward model.
        folders: Where all of them come from.
    """

    shared: SharedBase
    policy: PeftModel
    judge: PeftModel
    folders: Folders

    def of_role(self, role: str) -> PeftModel:
        """The separate model that a role of the shared base stands for."""
        return self.policy if role in ("policy", "reference") else self.judge


def load_pair(folders: Folders, precision: Precision) -> Pair:
    """Load both sides from the same folders."""
    with quiet_transformers():
        policy = AutoModelForCausalLM.from_pretrained(folders.base, **_plain_settings(precision, skip=None))
        judge = AutoModelForSequenceClassification.from_pretrained(
            folders.base, num_labels=1, pad_token_id=PAD, **_plain_settings(precision, skip=["score"])
        )
        pair = Pair(
            all_roles(folders, precise_config(folders.base, precision)),
            PeftModel.from_pretrained(policy, folders.policy, is_trainable=True).eval(),
            PeftModel.from_pretrained(judge, folders.reward, is_trainable=True).eval(),
            folders,
        )
    for model in (pair.policy, pair.judge):
        for module in model.modules():
            # On some CPUs bitsandbytes 0.50.2 rounds the 4-bit weights a second time at the first pass in
            # evaluation mode (`stages.models.loading._keep_nf4_differentiable`), which loses the gradients too.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return pair


def states_of(model: PeftModel, batch: PromptResponseBatch) -> Tensor:
    """Last hidden states `[B, S, D]` of a separate model."""
    trunk = model.get_base_model().base_model
    return trunk(**_arguments(trunk.forward, batch)).last_hidden_state


def logits_of(model: PeftModel, batch: PromptResponseBatch) -> Tensor:
    """All logits of a separate model: `[B, S, V]` of the policy, `[B, 1]` of the reward model."""
    return model(**_arguments(model.get_base_model().base_model.forward, batch)).logits


def logprobs_of(model: PeftModel, batch: PromptResponseBatch, *, temperature: float) -> tuple[Tensor, float]:
    """Log-probability of each response token `[B, T]`, 0 on padding; and the largest logit by absolute value."""
    logits = logits_of(model, batch)[:, _response_columns(batch)].float()
    distribution = torch.log_softmax(logits / temperature, dim=-1)
    picked = distribution.gather(-1, batch.response_ids[..., None])[..., 0]
    return torch.where(batch.response_mask, picked, 0.0), logits.detach().abs().max().item()


def response_states_of(model: PeftModel, batch: PromptResponseBatch) -> Tensor:
    """The states from which each response token is predicted, `[B, T, D]`, 0 on padding."""
    states = states_of(model, batch)[:, _response_columns(batch)]
    return torch.where(batch.response_mask[..., None], states, 0.0)


def lora_gradients(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    """Take the gradients off the parameters."""
    found = []
    for parameter in parameters:
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found


def separate_parameters(model: PeftModel) -> list[torch.nn.Parameter]:
    """The adapter's parameters in the order of `SharedBase.parameters`."""
    return [parameter for name, parameter in model.named_parameters() if "lora_" in name]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


def _response_columns(batch: PromptResponseBatch) -> slice:
    return slice(batch.prompt_width - 1, -1)


def _arguments(forward: Callable[..., Any], batch: PromptResponseBatch) -> dict[str, Any]:
    """What a user passes for left-padded rows: positions that count real tokens, where the model takes them."""
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long(), "use_cache": False}
    if "position_ids" in inspect.signature(forward).parameters:
        arguments["position_ids"] = (batch.attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return arguments


def _plain_settings(precision: Precision, *, skip: list[str] | None) -> dict[str, Any]:
    if precision != "nf4":
        return {"dtype": getattr(torch, precision)}
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skip,
    )
    return {"dtype": torch.bfloat16, "quantization_config": quantization}
