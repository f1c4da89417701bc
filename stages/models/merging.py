"""A trained policy merged into its base: one model that needs neither PEFT nor the base.

Merging adds the update B A to each weight in float32 and rounds the sum to the type of the base once. An update is
small beside the weight that it is added to, so some of it is lost in the rounding; how much is measured and said.
A base in NF4 is merged into its dequantised weights, which are those that the adapter was trained on: the result is
no 4-bit model, and the original weights would not fit the adapter (https://github.com/huggingface/trl/issues/3466).
"""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from stages.models.adapters import check_adapter
from stages.models.config import ModelConfig
from stages.models.dequantized import dequantize
from stages.models.exporting import new_folder
from stages.models.loading import load_causal_lm
from stages.models.quiet import quiet_transformers
from stages.models.sources import resolve_base
from stages.models.tokenizer import load_tokenizer, save_tokenizer
from stages.models.tuning import load_adapter

logger = logging.getLogger(__name__)


def export_merged(
    policy_folder: Path, model: ModelConfig, target: Path, *, device: str, config_dir: Path | None
) -> float:
    """Merge a policy's adapter into its base and save the model with the policy's tokenizer.

    Args:
        policy_folder: The policy's artifact.
        model: The model section of its run.
        target: A folder that is empty or does not exist; there whole afterwards, or not at all.
        device: `cpu` or `cuda`. NF4 may round apart on the two: use the one of the training.
        config_dir: Folder of the configuration file.

    Returns:
        What `merge` returns.

    Raises:
        ConfigError: The target is taken.
        ModelError: The adapter is of another base or shape than the model section says.
    """
    with new_folder(target) as folder:
        check_adapter(policy_folder, model, config_dir=config_dir)
        base: Any = load_causal_lm(resolve_base(model, config_dir), model, device)
        if model.quantization == "nf4":
            base = dequantize(base)
        lost = merge(load_adapter(base, policy_folder, "policy", trainable=False))
        logger.info(
            "merged in float32 and rounded to %s, which loses %.2g of the adapter's update (norm over norm)%s",
            model.dtype,
            lost,
            "; the base is the dequantised NF4 one" if model.quantization == "nf4" else "",
        )
        with quiet_transformers():
            base.save_pretrained(folder)
        save_tokenizer(load_tokenizer(policy_folder, model, config_dir), folder)
    return lost


@torch.no_grad()
def merge(peft_model: PeftModel) -> float:
    """Merge the active adapter into the weights of the model below, which is plain afterwards.

    Returns:
        The rounding of the merged weights over the update that was merged, by their norms over all weights: 0 is
        none, at 1 as much is lost as was added.
    """
    rounding = update = 0.0
    for module in peft_model.modules():
        if not isinstance(module, LoraLayer):
            continue
        layer: Any = module.get_base_layer()
        before, dtype = layer.weight.data.float(), layer.weight.dtype
        layer.weight.data = before.clone()
        module.merge(safe_merge=True)
        exact = layer.weight.data
        layer.weight.data = exact.to(dtype)
        rounding += float((layer.weight.data.float() - exact).double().square().sum())
        update += float((exact - before).double().square().sum())
    plain: PreTrainedModel = peft_model.unload()
    assert not any(isinstance(module, LoraLayer) for module in plain.modules())
    return float((rounding / update) ** 0.5) if update else 0.0
