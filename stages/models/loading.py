"""Loads the base model for training: type, quantisation and attention as configured, score head, dropout off.

What this module deliberately does not know: adapters (`stages.models.tuning`) and where the base comes from
(`stages.models.sources`).
"""

import logging
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from data.errors import ModelError
from stages.memory_errors import is_memory_error
from stages.models.config import ModelConfig
from stages.models.folders import check_config
from stages.models.own_code import own_code_error
from stages.models.quiet import quiet_transformers

_log = logging.getLogger(__name__)

_NF4_BLOCK = 64

# What transformers and its parsers raise about files that are wrong; a value of the wrong type is noticed anywhere.
_READING_ERRORS = (
    OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, ArithmeticError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip

SCORE_HEAD = "score"
"""Name of the head in every `...ForSequenceClassification` of a decoder in transformers."""


class Float32Linear(nn.Linear):
    """A linear layer that computes in its own type, whatever the type of its input.

    The trunk runs in bfloat16, the head in float32: a plain `nn.Linear` would refuse the mixture.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Cast, then multiply; autocast is off, since it would cast the weight back."""
        with torch.autocast(device_type=input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def load_causal_lm(base: Path | str, model: ModelConfig, device: str) -> PreTrainedModel:
    """Load the base as a causal language model, frozen.

    Args:
        base: What `resolve_base` returned.
        model: The model section.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError: transformers cannot load it, or a weight is not finite.
    """
    return _load(AutoModelForCausalLM, base, model, device, skip_modules=None)


def load_sequence_classifier(
    base: Path | str, model: ModelConfig, device: str, pad_token_id: int, *, seed: int, num_scores: int = 1
) -> PreTrainedModel:
    """Load the base as a classifier with one label and a new float32 head; all but the head is frozen.

    The head has no bias and weights of N(0, 1 / (d + 1)), d the width of its input, as in Stiennon et al.
    2020, https://arxiv.org/abs/2009.01325 (code: `openai/summarize-from-feedback`). The same seed gives the
    same head, whatever ran before.

    Args:
        base: What `resolve_base` returned.
        model: The model section.
        device: `cpu`, `cuda` or `cuda:N`.
        pad_token_id: transformers looks for the last token that is not this one to read the score there.
        seed: Seed of the head.
        num_scores: Rows of the head: independent scores of the same label, for an ensemble.

    Raises:
        ModelError: The architecture has no classifier with a head named `score`, or see `load_causal_lm`.
    """
    loaded = _load(
        AutoModelForSequenceClassification,
        base,
        model,
        device,
        skip_modules=[SCORE_HEAD],
        new_head=True,
        num_labels=1,
    )
    old = getattr(loaded, SCORE_HEAD, None)
    if not isinstance(old, nn.Linear):
        raise ModelError(
            f"model.base={str(base)!r}: {type(loaded).__name__} has no linear head named `{SCORE_HEAD}`. A "
            "reward model needs one. Use a decoder of the Llama, Qwen2, Mistral, Gemma, GPT-2, GPT-NeoX or "
            "OPT families."
        )
    setattr(loaded, SCORE_HEAD, make_score_head(old.in_features, seed=seed, num_scores=num_scores).to(loaded.device))
    loaded.config.pad_token_id = pad_token_id
    loaded.config.get_text_config().pad_token_id = pad_token_id
    return loaded


def make_score_head(width: int, *, seed: int, num_scores: int = 1) -> Float32Linear:
    """Make a head without bias, weights of N(0, 1 / (width + 1)), in float32 on the CPU.

    The first row is the head of one score.
    """
    head = Float32Linear(width, num_scores, bias=False, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for row in head.weight:
            row.normal_(0.0, 1.0 / math.sqrt(width + 1), generator=generator)
    return head


def load_classifier(base: Path | str, model: ModelConfig, device: str) -> PreTrainedModel:
    """Load a trained sequence classifier with its own head, frozen.

    Args:
        base: What `resolve_base` returned.
        model: Type, attention, revision.
        device: Where to load it.

    Raises:
        ModelError: It cannot be loaded, or its files lack a weight, say that of the head.
    """
    return _load(AutoModelForSequenceClassification, base, model, device, skip_modules=None)


def load_base_config(base: Path | str, model: ModelConfig) -> PretrainedConfig:
    """Read the base's configuration alone.

    Raises:
        ModelError: transformers cannot read it, or it is of no causal language model with plain weights.
    """
    try:
        with quiet_transformers():
            config: PretrainedConfig = AutoConfig.from_pretrained(
                base, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
    except _READING_ERRORS as error:
        raise _unloadable(base, error) from error
    check_config(config.to_dict(), f"model.base={str(base)!r}")
    return config


def num_blocks(config: PretrainedConfig) -> int:
    """Number of transformer blocks."""
    return int(config.get_text_config().num_hidden_layers)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a model's transformer blocks, and its name.

    Raises:
        ModelError: There is none.
    """
    config: Any = model.config
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks(config)
    ]
    if not found:
        raise ModelError(
            f"a {config.model_type} model has no list of {num_blocks(config)} blocks. Adapters are placed in "
            "the blocks of a decoder. Use another base."
        )
    return min(found, key=lambda item: (item[0].count("."), item[0]))


def hidden_size(config: PretrainedConfig) -> int:
    """Width of the hidden states between the blocks (OPT's head sees `word_embed_proj_dim` instead)."""
    return int(config.get_text_config().hidden_size)


def embedding_rows(model: nn.Module) -> int:
    """Number of rows of the input embedding, at least the size of the vocabulary."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[0])


def disable_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability of base and adapters to 0: `train()` and `eval()` then compute the same.

    `eval()` is not relied on: libraries switch modes. Besides `nn.Dropout` modules there are float attributes
    that models hand to `functional.dropout` (`OPTDecoderLayer.dropout`, `LlamaAttention.attention_dropout`),
    OPT's `layerdrop`, and values that code reads from the configuration. Call it after the last adapter was
    attached, since a new adapter brings a dropout of its own.

    Returns:
        The same model.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_dropout_attributes(module)
        config = vars(module).get("config")
        if isinstance(config, PretrainedConfig):
            configs |= {id(config): config, id(config.get_text_config()): config.get_text_config()}
    for config in configs.values():
        _zero_dropout_attributes(config)
    return model


def _zero_dropout_attributes(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and ("drop" in name) and value != 0.0:
            setattr(owner, name, 0.0)


def _load(
    auto_class: Any,
    base: Path | str,
    model: ModelConfig,
    device: str,
    *,
    skip_modules: list[str] | None,
    new_head: bool = False,
    **extra: Any,
) -> PreTrainedModel:
    dtype: torch.dtype = getattr(torch, model.dtype)
    config = load_base_config(base, model)
    if model.quantization == "nf4":
        # Dettmers et al. 2023, section 3, https://arxiv.org/abs/2305.14314: NF4, constants quantised again.
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skip_modules,
        )
    try:
        with quiet_transformers():
            loaded, report = auto_class.from_pretrained(
                base,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                dtype=dtype,
                attn_implementation=_attention(config, model, device),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # it would only point at its log; refused below, with names
                device_map=None if device == "cpu" else {"": device},
                **extra,
            )
    except _READING_ERRORS as error:
        if is_memory_error(error) or isinstance(error, torch.AcceleratorError):
            raise  # the machine is at fault, not the model
        raise _unloadable(base, error) from error
    _refuse_other_shapes(report["mismatched_keys"], base)
    _refuse_more_blocks(report["unexpected_keys"], loaded, base)
    _refuse_missing_weights(report["missing_keys"], base, new_head=new_head)
    _refuse_broken_weights(loaded, base)
    if model.quantization == "nf4":
        _keep_nf4_differentiable(loaded)
        if device == "cpu":
            _warn_of_odd_rows(loaded)
    # One device: without the map PEFT and accelerate treat the model like any other, instead of adding hooks.
    vars(loaded).pop("hf_device_map", None)
    loaded.requires_grad_(False)
    result: PreTrainedModel = loaded.eval()
    return result


def _attention(config: PretrainedConfig, model: ModelConfig, device: str) -> str:
    """The implementation for passes over whole sequences; `auto` resolved."""
    if model.attention != "auto":
        return model.attention
    is_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "eager" if is_capped or (device == "cpu" and model.dtype == "bfloat16") else "sdpa"


def _keep_nf4_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking the weights at the first `eval()` pass on a CPU with bf16.

    The repacked weights are multiplied by a kernel without a backward, so that the gradient of every adapter
    below is lost from then on, without an error (bitsandbytes 0.50.2, `Linear4bit.forward` and
    `matmul_4bit`); and they are rounded once more, so that two passes over the same tokens would differ.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (mypy sees a tensor or a module)


def _warn_of_odd_rows(model: nn.Module) -> None:
    """Say where NF4 on a CPU is off: bitsandbytes 0.50.2 takes the scales of other blocks there.

    Seen as a relative error of 0.25 instead of 0.09 for rows of 32 and 96; in blocks of 64, real models fit.
    """
    rows = {name: module.in_features for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, size in rows.items():
        if size % _NF4_BLOCK != 0:
            _log.warning(
                "model.quantization=nf4 on a CPU: %s has rows of %d, no multiple of %d, which bitsandbytes "
                "quantises "
                "badly on a CPU. Use such a base with model.quantization=none, or a GPU.",
                name,
                size,
                _NF4_BLOCK,
            )
            return


def _refuse_other_shapes(mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]], base: Path | str) -> None:
    """Refuse weights of another size than config.json says, which would be drawn at random."""
    different = sorted((name, tuple(found), tuple(wanted)) for name, found, wanted in mismatched)
    different = [each for each in different if not each[0].startswith(f"{SCORE_HEAD}.")]
    if different:
        name, found, wanted = different[0]
        raise ModelError(
            f"model.base={str(base)!r}: {len(different)} weights have another shape than config.json says, {name} "
            f"first: {found} in the files, {wanted} by config.json. Configuration and weights of one model are needed. "
            "Copy or download the model again."
        )


def _refuse_more_blocks(unexpected: Collection[str], model: nn.Module, base: Path | str) -> None:
    """Refuse a config.json of a smaller model, under which transformers leaves the last blocks out without a word."""
    root, blocks = find_blocks(model)
    number = re.compile(rf"(?:{re.escape(root)}|{re.escape(root.partition('.')[2] or root)})\.(\d+)\.")
    left_out = {int(match[1]) for match in map(number.match, unexpected) if match is not None}
    beyond = {block for block in left_out if block >= len(blocks)}
    if beyond:
        raise ModelError(
            f"model.base={str(base)!r}: the files hold {max(beyond) + 1} blocks, config.json has {len(blocks)}. "
            "Configuration and weights of one model are needed. Take the config.json that belongs to these weights."
        )


def _refuse_missing_weights(missing: Collection[str], base: Path | str, *, new_head: bool) -> None:
    """Refuse what transformers draws at random with a warning only, but for a head that is about to be made anew."""
    names = sorted(name for name in missing if not (new_head and name.startswith(f"{SCORE_HEAD}.")))
    if names:
        raise ModelError(
            f"model.base={str(base)!r}: {len(names)} weights are missing in the files, {names[0]} first. "
            "Every weight of the model is needed, or it would be random. Copy or download the model again."
        )


def _refuse_broken_weights(model: nn.Module, base: Path | str) -> None:
    """One pass over the weights: a NaN would otherwise show only as a NaN loss, three stages later."""
    for name, weight in model.named_parameters():
        # A head that the checkpoint does not have is drawn anew anyway.
        if weight.is_floating_point() and not name.startswith(f"{SCORE_HEAD}.") and not weight.isfinite().all():
            raise ModelError(
                f"model.base={str(base)!r}: the weight {name} holds NaN or infinity. Finite weights are "
                "needed. Copy or download the model again; a float16 overflow goes away with "
                "model.dtype=bfloat16."
            )


def _unloadable(base: Path | str, error: BaseException) -> ModelError:
    if (own_code := own_code_error(base, error)) is not None:
        return own_code
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines) if isinstance(error, StrictDataclassError) else lines[0]
    return ModelError(
        f"model.base={str(base)!r}: transformers cannot load it ({type(error).__name__}: {reason}). A causal "
        "language model of an architecture that transformers knows, with safetensors weights, is needed. "
        "Check the name, model.revision, model.attention, model.quantization and model.trust_remote_code."
    )
