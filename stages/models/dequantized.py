"""The NF4 base as plain weights, for an engine that has no NF4 of its own.

NF4 is lossy, so an engine that serves the original weights samples from another model than the trainer
computes with. Served from here, both have the same weights: quantised once, then dequantised.
"""

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from data.errors import ModelError
from stages.models.cache import cache_dir, locked
from stages.models.config import ModelConfig
from stages.models.loading import load_causal_lm
from stages.models.quiet import quiet_transformers
from stages.models.sources import base_spec_digest
from stages.models.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


def dequantize(loaded: Any) -> Any:
    """Turn a loaded NF4 model into the plain one of the same weights, in the type that it computes in."""
    with quiet_transformers():
        plain = loaded.dequantize()
    plain.config.__dict__.pop("quantization_config", None)
    _restore_conv1d(plain)
    return plain


def _restore_conv1d(plain: Any) -> None:
    """Give GPT-2 its own layers back: quantised, its `Conv1D` are linear layers with the weight transposed.

    Saved as they are, the weights would not fit the architecture, or where a weight is square, fit it wrongly.
    """
    with torch.device("meta"):
        skeleton = type(plain)(plain.config)
    for name, module in skeleton.named_modules():
        if not isinstance(module, Conv1D):
            continue
        linear = plain.get_submodule(name)
        restored = Conv1D(linear.out_features, linear.in_features)
        restored.weight = nn.Parameter(linear.weight.data.T.contiguous(), requires_grad=False)
        restored.bias = linear.bias
        plain.set_submodule(name, restored)


def dequantized_base(base: Path | str, model: ModelConfig, device: str, config_dir: Path | None) -> Path:
    """Folder with the base quantised to NF4 and dequantised again; made once, then cached.

    Args:
        base: What `resolve_base` returned.
        model: The model section; its quantisation is `nf4`.
        device: Where to quantise: the CPU and CUDA kernels may round apart.
        config_dir: Folder of the configuration file.

    Raises:
        ModelError: The base is not quantised by this configuration.
    """
    if model.quantization != "nf4":
        raise ModelError("model.quantization is not `nf4`; serve the base itself")
    digest = base_spec_digest(model, config_dir)
    target = cache_dir() / "dequantized" / f"{digest[:16]}-{model.dtype}-{device}"
    with locked(target.parent / f".{target.name}.lock"):
        if target.is_dir():
            return target
        start = time.monotonic()
        logger.info("dequantising the NF4 base once, so that the engine serves the trainer's weights")
        loaded = load_causal_lm(base, model, device)
        plain = dequantize(loaded)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            built = Path(scratch) / "built"
            plain.save_pretrained(built)
            load_tokenizer(base, model, config_dir).save_pretrained(built)
            os.rename(built, target)
        logger.info("dequantised in %.0f s", time.monotonic() - start)
    return target
