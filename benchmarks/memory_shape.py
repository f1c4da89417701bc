"""Memory of the four roles for a model's shape alone: nothing is downloaded, no weight exists.

Weights are counted on the meta device, on the adapters that `stages.models.tuning` makes. For the activations
one update runs on fake tensors (shapes and types of a CPU's kernels, no data), and every storage is counted
while it lives. There the batch is a full rectangle, under a mask as padding brings it, and the arithmetic of the
losses over [rows, response tokens], some kilobytes, is left out, because it selects by value.

NF4 is counted for weights only: its kernels do not run on fake tensors.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from benchmarks.memory_bytes import (
    ROLES,
    TRAINED_ROLES,
    LiveBytes,
    adamw_bytes,
    adapter_parameters,
    model_tensors,
    nf4_bytes,
    storage_bytes,
)
from stages.algorithms.logprobs import chunked_logprobs
from stages.models.config import ModelConfig, TuningConfig
from stages.models.low_rank import save_copies
from stages.models.scalar_head import ScoreHead, ScoreNormalization, ValueHead
from stages.models.shared_base import _LOGITS_CHUNK_BYTES
from stages.models.tuning import attach_adapter, lora_config

Precision = Literal["bf16", "nf4"]

SHAPES = {
    "llama-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
}


@dataclass(frozen=True)
class Batch:
    """One microbatch.

    Attributes:
        rows: Episodes.
        prompt_tokens: Of each.
        response_tokens: Of each.
    """

    rows: int = 8
    prompt_tokens: int = 128
    response_tokens: int = 128


@dataclass(frozen=True)
class Weights:
    """Bytes of the parts; both layouts consist of them.

    Attributes:
        base: The frozen base.
        adapters: Each role's adapter.
        heads: Value head of the critic and score head of the reward model.
        gradients: Of what is trained: policy, critic and value head.
        optimizer: AdamW's state for that.
    """

    base: int
    adapters: dict[str, int]
    heads: dict[str, int]
    gradients: int
    optimizer: int

    @property
    def added(self) -> int:
        """Adapters and heads together."""
        return sum(self.adapters.values()) + sum(self.heads.values())

    @property
    def shared(self) -> int:
        """Resident weights of four roles on one base."""
        return self.base + self.added

    @property
    def separate(self) -> int:
        """Resident weights of four roles, each on a base of its own."""
        return len(ROLES) * self.base + self.added


@dataclass(frozen=True)
class UpdateBytes:
    """What one update of a microbatch needs above weights and optimizer state, which are there before.

    Attributes:
        kept: Alive between the policy's forward and its backward.
        peak: The most at once, gradients and temporaries included.
    """

    kept: int
    peak: int


def shape_weights(config: PretrainedConfig, model: ModelConfig) -> Weights:
    """Count the weights of the four roles.

    Args:
        config: The base's shape.
        model: Rank, target modules and quantisation.
    """
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        # The output embedding stays as it is, as in transformers' own choice of modules.
        linear = [
            module
            for module in base.modules()
            if isinstance(module, nn.Linear) and module is not base.get_output_embeddings()
        ]
        base_bytes = storage_bytes(model_tensors(base))
        if model.quantization == "nf4":
            base_bytes -= storage_bytes(module.weight for module in linear)
            base_bytes += sum(nf4_bytes(module.weight.numel()) for module in linear)
        peft_model = _attach(base, config, model, ROLES)
        width = base.get_output_embeddings().weight.shape[-1]
        heads = {"critic": _value_head(width), "reward": ScoreHead(torch.zeros(1, width), ScoreNormalization())}
    trained = [parameter for role in TRAINED_ROLES for parameter in adapter_parameters(peft_model, role)]
    trained += heads["critic"].parameters()
    return Weights(
        base=base_bytes,
        adapters={role: storage_bytes(adapter_parameters(peft_model, role)) for role in ROLES},
        heads={role: storage_bytes(head.parameters()) for role, head in heads.items()},
        gradients=storage_bytes(trained),
        optimizer=adamw_bytes(trained),
    )


def shape_update(
    config: PretrainedConfig, model: ModelConfig, batch: Batch, *, checkpointing: bool, device: Literal["cpu", "cuda"]
) -> UpdateBytes:
    """Run one update of a microbatch on fake tensors and count what lives.

    Args:
        config: The base's shape; computed in bf16.
        model: Rank and target modules.
        batch: The microbatch.
        checkpointing: Recompute the activations of each block in the backward.
        device: Whose size of the logits' chunks `SharedBase` would take. The kernels are the CPU's.
    """
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        base.requires_grad_(False)
        peft_model = _attach(base, config, model, TRAINED_ROLES)
    with FakeTensorMode(allow_non_fake_inputs=True):
        peft_model.to_empty(device="cpu")
        head = base.get_output_embeddings()
        value_head = _value_head(head.weight.shape[-1])
        base.eval()
        if checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.train()
        trained = {role: adapter_parameters(peft_model, role) for role in TRAINED_ROLES}
        trained["critic"] += value_head.parameters()
        optimizer = warm_optimizer([parameter for group in trained.values() for parameter in group])
        existing = [*model_tensors(peft_model), *model_tensors(value_head), *optimizer_tensors(optimizer)]
        width = batch.prompt_tokens + batch.response_tokens
        ids = torch.zeros(batch.rows, width, dtype=torch.int64)
        responses = slice(-batch.response_tokens - 1, -1)

        def states(role: str) -> Tensor:
            for name, parameters in trained.items():
                for parameter in parameters:
                    parameter.requires_grad_(name == role)
            mask = torch.ones(batch.rows, 1, width, width, dtype=torch.bool).tril_()
            hidden: Tensor = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return hidden[:, responses]

        with LiveBytes([*existing, ids]) as live:
            peft_model.set_adapter("policy")
            logprobs = chunked_logprobs(
                states("policy").flatten(0, 1),
                ids[:, -batch.response_tokens :].flatten(),
                head=head,
                temperature=1.0,
                chunk_size=max(_LOGITS_CHUNK_BYTES[device] // (4 * head.weight.shape[0]), 1),
            )
            loss = logprobs.sum()
            kept = live.current
            loss.backward()
            del loss, logprobs
            peft_model.set_adapter("critic")
            value_head(states("critic")).sum().backward()
            optimizer.step()
        return UpdateBytes(kept, live.peak)


def warm_optimizer(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW after one step on gradients of 0: its state is there, as from the second update on."""
    optimizer = torch.optim.AdamW(parameters, lr=1.0e-4, eps=1.0e-5, weight_decay=0.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer keeps between steps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def model_section(base: str, precision: Precision, rank: int) -> ModelConfig:
    """The model section of a configuration: LoRA on all linear modules of all blocks."""
    return ModelConfig(
        base=base,
        quantization="nf4" if precision == "nf4" else "none",
        tuning=TuningConfig(rank=rank, alpha=2.0 * rank),
    )


def _attach(base: nn.Module, config: PretrainedConfig, model: ModelConfig, roles: tuple[str, ...]) -> PeftModel:
    section = lora_config(model, config, "causal_lm")
    peft_model = base
    for role in roles:
        peft_model = attach_adapter(peft_model, section, adapter_name=role, seed=0)
    if model.quantization == "none":  # as `SharedBase` has it; PEFT's layers of a 4-bit base stay as they are
        save_copies(peft_model.modules())
    return peft_model


def _value_head(width: int) -> ValueHead:
    return ValueHead.from_score_head(torch.zeros(1, width), ScoreNormalization())
