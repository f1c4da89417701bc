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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import GenerationConfig

from data.collators import PromptResponseBatch
from stages.algorithms.logprobs import chunked_logprobs, chunked_logprobs_and_entropy
from stages.algorithms.masking import position_ids_from_mask
from stages.models.compiling import compile_blocks
from stages.models.config import ModelConfig
from stages.models.loading import disable_dropout
from stages.models.logits_head import LogitsHead
from stages.models.low_rank import save_copies
from stages.models.trunk import Trunk, TrunkCache
from stages.models.tuning import attach_adapter, load_adapter_weights, lora_config

# Logits that exist at once, in bytes of float32. On a CPU a block of this size stays on the heap: larger ones
# are mapped and cleared anew for each chunk, which took a quarter of a PPO step's time. A GPU wants long products.
_LOGITS_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}


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
        # A model's own sampling settings (repetition penalty, top-p ...) would fill what a call leaves open.
        loaded.generation_config = GenerationConfig()
        # A slice of hidden states that is not contiguous makes the product with the head copy the whole
        # vocabulary's weights once a row: 5 GB, and half the time of generating 96 x 24 tokens.
        loaded.get_output_embeddings().register_forward_pre_hook(_make_contiguous)
        self._base = loaded
        self._lora_config = lora_config(
            model.model_copy(update={"tuning": model.tuning.model_copy(update={"dropout": 0.0})}),
            loaded.config,
            "causal_lm",
        )
        self._peft: PeftModel | None = None
        self._layers: list[BaseTunerLayer] = []
        self._head = LogitsHead.of(loaded)
        vocabulary = loaded.get_output_embeddings().weight.shape[0]
        self._chunk_rows = max(_LOGITS_CHUNK_BYTES[loaded.device.type] // (4 * vocabulary), 1)
        is_capped = getattr(loaded.config.get_text_config(), "attn_logit_softcapping", None) is not None
        self._decodes_by_sdpa = model.attention == "auto" and not is_capped
        self._trunk: Trunk | None = None
        self._cache: TrunkCache | None = None
        self._is_compiled = False
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
    def max_positions(self) -> int | None:
        """Longest sequence that the base knows positions for; None where its configuration does not say."""
        value = getattr(self._base.config.get_text_config(), "max_position_embeddings", None)
        return None if value is None else int(value)

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
        output = self._forward(self._base.base_model, input_ids, attention_mask)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def response_hidden_states(self, batch: PromptResponseBatch) -> Float[Tensor, "B T D"]:
        """The states from which each response token is predicted, that is one position before it."""
        hidden = self.hidden_states(batch.input_ids, batch.attention_mask)
        width = batch.response_ids.shape[1]
        return hidden[:, -width - 1 : -1]

    def response_logprobs(
        self, batch: PromptResponseBatch, *, temperature: float, entropy_gradient: bool = True
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Log-probability and entropy of each response token under the active role.

        For measuring, and for one backward where the entropy is part of the loss.

        Args:
            batch: Left-padded prompts and right-padded responses.
            temperature: The one that the responses were sampled at.
            entropy_gradient: Whether the entropy is part of the loss, too.

        Returns:
            logprobs: In nats; 0 on padding.
            entropy: Of the distribution that the token was drawn from, in nats; 0 on padding.
        """
        head, rows = self._head_and_rows(batch)
        logprobs, entropy = chunked_logprobs_and_entropy(
            rows,
            batch.response_ids[batch.response_mask],
            head=head,
            temperature=temperature,
            chunk_size=self._chunk_rows,
            entropy_gradient=entropy_gradient,
        )
        return _scatter(logprobs, batch.response_mask), _scatter(entropy, batch.response_mask)

    def training_logprobs(self, batch: PromptResponseBatch, *, temperature: float) -> Float[Tensor, "B T"]:
        """Log-probability of each response token under the active role, for one backward.

        Same values as `response_logprobs`; see there for the arguments.
        """
        head, rows = self._head_and_rows(batch)
        logprobs = chunked_logprobs(
            rows,
            batch.response_ids[batch.response_mask],
            head=head,
            temperature=temperature,
            chunk_size=self._chunk_rows,
        )
        return _scatter(logprobs, batch.response_mask)

    def next_token_logprobs(
        self, input_ids: Int[Tensor, "B P"], attention_mask: Bool[Tensor, "B P"]
    ) -> Float[Tensor, "B V"]:
        """Log-probabilities of all next tokens of left-padded prompts, at temperature 1, in nats, in float32."""
        if self._head is not None:
            logits = self._head(self.hidden_states(input_ids, attention_mask)[:, -1])
        else:
            logits = self._forward(self._base, input_ids, attention_mask, logits_to_keep=1).logits[:, -1]
        return torch.log_softmax(logits.float(), dim=-1)

    def generate(self, input_ids: Int[Tensor, "B P"], attention_mask: Bool[Tensor, "B P"], **settings: Any) -> Any:
        """Transformers' own `generate` under the active role.

        In evaluation mode: in training mode, activation checkpointing drops the key-value cache while `generate`
        passes on only the newest token, so that each token would be drawn without the ones before it.
        """
        training, attention = self._base.training, self._base.config._attn_implementation
        self._base.eval()
        if self._decodes_by_sdpa:
            self._base.set_attn_implementation("sdpa")
        try:
            # Compiled blocks would be compiled again for each block's own place in the key-value cache.
            with torch.compiler.set_stance("force_eager") if self._is_compiled else nullcontext():
                return self._base.generate(input_ids=input_ids, attention_mask=attention_mask.long(), **settings)
        finally:
            self._base.train(training)
            if self._decodes_by_sdpa:
                self._base.set_attn_implementation(attention)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass.

        transformers recomputes only in training mode, so this puts the model there; dropout is 0 by then
        (`loading.disable_dropout`), so no result changes.
        """
        self._base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._base.train()

    def compile_blocks(self) -> None:
        """Compile the blocks for all passes but `generate`. See `stages/models/compiling.py`.

        Raises:
            ModelError: There is no C++ compiler where one is needed.
        """
        compile_blocks(self._base)
        self._is_compiled = True

    def enable_trunk_cache(self) -> int:
        """Let `cached_trunk` compute what lies below all adapters once a sequence. To be called with all roles there.

        Returns:
            Number of blocks that the trunk has.

        Raises:
            ModelError: The adapters leave no common trunk, or the model cannot be cut.
        """
        self._trunk = Trunk(self._base)
        return self._trunk.depth

    @contextmanager
    def cached_trunk(self) -> Iterator[None]:
        """Keep the trunk of each sequence that passes within, for further passes, if `enable_trunk_cache` was called.

        A row that was computed in one microbatch and is used in another is that of the first: they differ by rounding.
        """
        self._cache = None if self._trunk is None else TrunkCache(self._trunk)
        try:
            yield
        finally:
            self._cache = None

    def _head_and_rows(self, batch: PromptResponseBatch) -> tuple[Callable[[Tensor], Tensor], Float[Tensor, "N D"]]:
        """The head, and what it is applied to at each of the N response tokens."""
        if self._head is None:
            return _identity, self._own_logits(batch)[batch.response_mask]
        return self._head, self.response_hidden_states(batch)[batch.response_mask]

    def _own_logits(self, batch: PromptResponseBatch) -> Float[Tensor, "B T V"]:
        """Logits by the model's own head, for heads that `LogitsHead` does not know."""
        width = batch.response_ids.shape[1]
        output = self._forward(self._base, batch.input_ids, batch.attention_mask, logits_to_keep=width + 1)
        logits: Tensor = output.logits[:, -width - 1 : -1]
        return logits

    def _forward(
        self, model: Any, input_ids: Int[Tensor, "B S"], attention_mask: Bool[Tensor, "B S"], **settings: Any
    ) -> Any:
        """Pass through the base, with or without its head, from the cached trunk upwards where there is one."""

        def run() -> Any:
            return model(
                input_ids=input_ids,
                attention_mask=attention_mask.long(),
                use_cache=False,
                **settings,
                **self._positions(attention_mask),
            )

        return run() if self._cache is None else self._cache.run(input_ids, attention_mask, run)

    def _positions(self, attention_mask: Bool[Tensor, "B S"]) -> dict[str, Int[Tensor, "B S"]]:
        """Positions as an argument of the forward, for the families that take one."""
        return {"position_ids": position_ids_from_mask(attention_mask)} if self._takes_positions else {}

    def _attach(self, name: str) -> None:
        """Add a fresh adapter without moving the flags of the others, as PEFT may."""
        flags = [] if self._peft is None else [(p, p.requires_grad) for p in self._peft.parameters()]
        self._peft = attach_adapter(self._peft or self._base, self._lora_config, adapter_name=name, seed=0)
        for parameter, trainable in flags:
            parameter.requires_grad_(trainable)
        self._layers = [module for module in self._peft.modules() if isinstance(module, BaseTunerLayer)]
        save_copies(self._layers)

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


def _scatter(values: Float[Tensor, " N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Put the values of the real tokens back into rows; 0 on padding."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def _make_contiguous(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook: the same input, contiguous."""
    return (arguments[0].contiguous(), *arguments[1:])


def _identity(rows: Tensor) -> Tensor:
    return rows
