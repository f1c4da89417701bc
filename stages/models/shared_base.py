"""One frozen base model under several named adapters.

The base is loaded once; `policy`, `reference`, `reward` and `critic` are LoRA adapters on it, and a role is
entered with

    with shared_base.role("policy"):
        ...forward and backward...

The block has to enclose the backward too: activation checkpointing runs the forward again in the backward,
under whatever adapter is active then. Entering a role never touches `requires_grad`; that is set once, when
the adapter is added. PEFT's own `set_adapter` flips it, which would let gradients into the reference.

This module knows nothing of losses, rollouts or rewards.

Shape legend: B = rows, S = prompt and response tokens, T = response tokens, D = hidden size, V = vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from data.collators import PromptResponseBatch
from stages.algorithms.logprobs import chunked_logprobs
from stages.algorithms.masking import position_ids_from_mask
from stages.models.config import ModelConfig
from stages.models.loading import disable_dropout
from stages.models.logits_head import LogitsHead
from stages.models.tuning import attach_adapter, load_adapter_weights, lora_config

# Rows of hidden states whose logits exist at once: 1024 x 128k tokens x 4 bytes = 0.5 GiB.
LOGITS_CHUNK_ROWS = 1024


class SharedBase:
    """A frozen causal language model and the adapters on it."""

    def __init__(self, loaded: Any, model: ModelConfig) -> None:
        """Freeze the base and put its dropout to 0.

        Args:
            loaded: A `PreTrainedModel` with a language-model head; owned by this object from now on.
            model: The model section, for the shape of the adapters.
        """
        loaded.requires_grad_(False)
        loaded.eval()
        disable_dropout(loaded)
        self._base = loaded
        self._lora_config = lora_config(
            model.model_copy(update={"tuning": model.tuning.model_copy(update={"dropout": 0.0})}),
            loaded.config,
            "causal_lm",
        )
        self._peft: PeftModel | None = None
        self._layers: list[BaseTunerLayer] = []
        self._head = LogitsHead.of(loaded)
        self._takes_positions = "position_ids" in inspect.signature(loaded.base_model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        device: torch.device = self._base.device
        return device

    @property
    def hidden_size(self) -> int:
        """Width D of the states that the heads read."""
        return int(self._base.get_output_embeddings().weight.shape[-1])

    @property
    def peft_model(self) -> PeftModel:
        """The model with its adapters, for saving them."""
        if self._peft is None:
            raise ValueError("the shared base has no adapter yet; add one first")
        return self._peft

    def add_adapter(self, name: str, folder: Path, *, trainable: bool) -> None:
        """Load an adapter from an artifact: a policy's, or a reward model's without its head.

        Args:
            name: Name of the role.
            folder: Artifact with `adapter_config.json` at its root.
            trainable: Whether its parameters get gradients. Set here, once.

        Raises:
            ModelError: The adapter does not fit the base or the model section.
        """
        self._attach(name)
        load_adapter_weights(self.peft_model, folder, name)
        self._set_trainable(name, trainable)

    def copy_adapter(self, source: str, name: str, *, trainable: bool) -> None:
        """Add an adapter that starts with the weights of another one."""
        self._attach(name)
        own = self._named_parameters(name)
        with torch.no_grad():
            for key, parameter in self._named_parameters(source).items():
                own[key].copy_(parameter)
        self._set_trainable(name, trainable)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one adapter, in a fixed order."""
        return list(self._named_parameters(name).values())

    @contextmanager
    def role(self, name: str | None) -> Iterator[None]:
        """Make one adapter active; None is the pretrained base without any.

        Raises:
            ValueError: There is no adapter of that name.
        """
        if name is not None and (self._peft is None or name not in self._peft.peft_config):
            known = [] if self._peft is None else sorted(self._peft.peft_config)
            raise ValueError(f"no adapter {name!r} on the shared base; it has {known}")
        before = [(layer._active_adapter, layer._disable_adapters) for layer in self._layers]
        for layer in self._layers:
            layer._active_adapter = [] if name is None else [name]
            layer._disable_adapters = name is None
        try:
            yield
        finally:
            for layer, (active, disabled) in zip(self._layers, before, strict=True):
                layer._active_adapter = active
                layer._disable_adapters = disabled

    def hidden_states(
        self, input_ids: Int[Tensor, "B S"], attention_mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B S D"]:
        """Last hidden states, after the final norm, under the active role.

        Left padding is allowed: positions count real tokens only.
        """
        positions = {"position_ids": position_ids_from_mask(attention_mask)} if self._takes_positions else {}
        output = self._base.base_model(
            input_ids=input_ids, attention_mask=attention_mask.long(), use_cache=False, **positions
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def response_hidden_states(self, batch: PromptResponseBatch) -> Float[Tensor, "B T D"]:
        """The states from which each response token is predicted, that is one position before it."""
        hidden = self.hidden_states(batch.input_ids, batch.attention_mask)
        width = batch.response_ids.shape[1]
        return hidden[:, -width - 1 : -1]

    def response_logprobs(
        self, batch: PromptResponseBatch, *, temperature: float
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probability and entropy of each response token under the active role.

        Args:
            batch: Left-padded prompts and right-padded responses.
            temperature: The one that the responses were sampled at.

        Returns:
            logprobs: In nats; 0 on padding.
            entropy: Of the distribution that the token was drawn from, in nats; 0 on padding.
        """
        mask = batch.response_mask
        logprobs = torch.zeros(mask.shape, device=mask.device)
        entropy = torch.zeros(mask.shape, device=mask.device)
        head: Callable[[Tensor], Tensor] = self._head or _identity
        hidden = self._own_logits(batch) if self._head is None else self.response_hidden_states(batch)
        rows = hidden[mask]
        found_logprobs, found_entropy = chunked_logprobs(
            rows, batch.response_ids[mask], head=head, temperature=temperature, chunk_size=LOGITS_CHUNK_ROWS
        )
        return (
            logprobs.masked_scatter(mask, found_logprobs.to(logprobs.dtype)),
            entropy.masked_scatter(mask, found_entropy.to(entropy.dtype)),
        )

    def generate(self, input_ids: Int[Tensor, "B P"], attention_mask: Bool[Tensor, "B P"], **settings: Any) -> Any:
        """Transformers' own `generate` under the active role."""
        return self._base.generate(input_ids=input_ids, attention_mask=attention_mask.long(), **settings)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass.

        transformers recomputes only in training mode, so this puts the model there; dropout is 0 by then
        (`loading.disable_dropout`), so no result changes.
        """
        self._base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._base.train()

    def _own_logits(self, batch: PromptResponseBatch) -> Float[Tensor, "B T V"]:
        """Logits by the model's own head, for heads that `LogitsHead` does not know."""
        width = batch.response_ids.shape[1]
        positions = {"position_ids": position_ids_from_mask(batch.attention_mask)} if self._takes_positions else {}
        output = self._base(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            use_cache=False,
            logits_to_keep=width + 1,
            **positions,
        )
        logits: Tensor = output.logits[:, -width - 1 : -1]
        return logits

    def _attach(self, name: str) -> None:
        """Add a fresh adapter without moving the flags of the others, as PEFT may."""
        flags = [] if self._peft is None else [(p, p.requires_grad) for p in self._peft.parameters()]
        self._peft = attach_adapter(self._peft or self._base, self._lora_config, adapter_name=name, seed=0)
        for parameter, trainable in flags:
            parameter.requires_grad_(trainable)
        self._layers = [module for module in self._peft.modules() if isinstance(module, BaseTunerLayer)]

    def _set_trainable(self, name: str, trainable: bool) -> None:
        for parameter in self.parameters(name):
            parameter.requires_grad_(trainable)

    def _named_parameters(self, name: str) -> dict[str, nn.Parameter]:
        marker = f".{name}."
        return {
            key.replace(marker, "."): parameter
            for key, parameter in self.peft_model.named_parameters()
            if marker in key and "lora_" in key
        }


def _identity(rows: Tensor) -> Tensor:
    return rows
