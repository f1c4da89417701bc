"""LoRA adapters on the base: which modules, how they are saved, and how one task's adapter becomes another's.

Saved adapters are what PEFT saves (`PeftModel.from_pretrained` and vLLM load them), but canonical: PEFT keeps
`target_modules` in a set, puts every adapter but `default` into a subfolder and writes a README, so the same
adapter would have other bytes at each save. This module writes the two files itself.

Adapters of the causal language model and of the classifier have the same keys, but for the head's
`score.weight`.
"""

import enum
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data.errors import ModelError
from stages.memory_errors import is_memory_error
from stages.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SCORE_KEY,
    adapter_config,
    adapter_tensors,
    no_score_head,
)
from stages.models.config import ModelConfig
from stages.models.loading import SCORE_HEAD, find_blocks, num_blocks

Task = Literal["causal_lm", "seq_cls"]


def lora_config(model: ModelConfig, base_config: PretrainedConfig, task: Task) -> LoraConfig:
    """Build the adapter's configuration with every module named.

    `all-linear` becomes the sorted names of the linear modules inside the blocks (the head, the embedding and
    OPT's `project_in` and `project_out` carry none), because PEFT refuses its own `all-linear` together with
    chosen blocks.

    Args:
        model: The model section.
        base_config: Configuration of the base, from `load_base_config`.
        task: `seq_cls` trains and saves the head `score` in full.

    Raises:
        ModelError: A module of `model.tuning.target_modules` does not exist, or there are fewer blocks than
            asked.
    """
    tuning = model.tuning
    pattern, linear = _linear_modules(base_config, trust_remote_code=model.trust_remote_code)
    targets = sorted(linear) if tuning.target_modules == "all-linear" else sorted(set(tuning.target_modules))
    chosen = {target: _kinds_of(target, linear) for target in targets}
    for target, kinds in chosen.items():
        if not kinds:
            raise ModelError(
                f"model.tuning.target_modules names {target!r}, but a {base_config.model_type} block has no "
                f"such linear module. Linear modules of this base: {', '.join(sorted(linear))}. "
                "Use some of them, or `all-linear`."
            )
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        use_rslora=tuning.rslora,
        target_modules=targets,
        fan_in_fan_out=any(Conv1D in kinds for kinds in chosen.values()),
        bias="none",
        revision=model.revision,
        task_type="SEQ_CLS" if task == "seq_cls" else "CAUSAL_LM",
        modules_to_save=[SCORE_HEAD] if task == "seq_cls" else None,
        **_chosen_blocks(model, base_config, pattern),
    )


def attach_adapter(
    model: PreTrainedModel | PeftModel, config: LoraConfig, *, adapter_name: str = "default", seed: int
) -> PeftModel:
    """Add a fresh trainable adapter in float32. B is 0, so the model computes what it computed before.

    A is drawn from a generator state of its own: the same seed gives the same adapter, whatever ran before,
    and the caller's random state is not moved.
    """
    with _forked_random_state(seed):
        if isinstance(model, PeftModel):
            model.add_adapter(adapter_name, config)
            return model
        peft_model: PeftModel = get_peft_model(model, config, adapter_name=adapter_name)
    return peft_model


def save_adapter(peft_model: PeftModel, adapter_name: str, folder: Path, *, base_spec: str) -> None:
    """Save one adapter at the root of a folder: the same adapter gives the same bytes, whatever its name.

    Tensors are written in float32. The configuration is JSON with sorted keys and sorted module names.

    Args:
        peft_model: Holds the adapter; nothing in it is changed.
        adapter_name: Its name there.
        folder: Where to write; made if need be.
        base_spec: `model.base` of the configuration, which becomes `base_model_name_or_path`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: value.detach().to("cpu", torch.float32).contiguous()
        for key, value in _state(peft_model, adapter_name).items()
    }
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config: dict[str, Any] = peft_model.peft_config[adapter_name].to_dict()
    config |= {"base_model_name_or_path": base_spec, "inference_mode": True, "auto_mapping": None}
    if config["modules_to_save"] is not None:
        # PEFT appends "classifier" and "score" at each construction, so the list would grow with every load.
        config["modules_to_save"] = sorted({name for name in config["modules_to_save"] if name == SCORE_HEAD})
    text = json.dumps({key: _plain(value) for key, value in config.items()}, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel | PeftModel, folder: Path, adapter_name: str, *, trainable: bool) -> PeftModel:
    """Load a saved adapter, with its configuration, onto a base or beside the adapters that are there.

    The adapter's task has to be the model's; for the other task use `attach_adapter` and
    `load_adapter_weights`.

    Raises:
        ModelError: The folder holds no adapter or one that does not fit.
    """
    adapter_config(folder)
    saved = adapter_state(folder)  # first: where it has no safetensors, PEFT takes a pickled adapter_model.bin
    device = str(model.device)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name, is_trainable=trainable, torch_device=device)
            peft_model = model
        else:
            peft_model = PeftModel.from_pretrained(
                model, str(folder), adapter_name=adapter_name, is_trainable=trainable, torch_device=device
            )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        if is_memory_error(error) or isinstance(error, torch.AcceleratorError):
            raise  # the machine is at fault, not the adapter
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"the adapter at {folder} does not fit the model: PEFT cannot load it ({reason}). Base, rank, target "
            "modules and blocks have to be those of model.base and model.tuning. Set them to the adapter's, or train "
            "the adapter again."
        ) from error
    # PEFT only warns about tensors that have no place.
    _check_keys(saved, _state(peft_model, adapter_name), folder)
    return peft_model


def load_adapter_weights(peft_model: PeftModel, folder: Path, adapter_name: str) -> None:
    """Copy a saved adapter's weights into an adapter that exists, of the same or of the other task.

    A policy's adapter starts a reward model: the head keeps its weights. A reward model's adapter starts a
    critic on the causal language model: the saved `score.weight` is left out (`score_weight` gives it).

    Raises:
        ModelError: Ranks, modules or blocks differ.
    """
    current = _state(peft_model, adapter_name)
    saved = adapter_state(folder)
    _check_keys(saved, current, folder)
    # set_peft_model_state_dict demands a value for the head, which a policy's adapter does not have.
    merged = current | {key: value for key, value in saved.items() if key in current}
    set_peft_model_state_dict(peft_model, merged, adapter_name=adapter_name)


def adapter_state(folder: Path) -> dict[str, Tensor]:
    """Read a saved adapter's tensors, by PEFT's keys without adapter name, on the CPU.

    Raises:
        ModelError: The file is missing, damaged or not finite.
    """
    adapter_tensors(folder)
    state: dict[str, Tensor] = load_file(folder / ADAPTER_WEIGHTS)
    return state


def score_weight(folder: Path) -> Tensor:
    """Read the head of a saved reward model, `[1, d]` in float32.

    Raises:
        ModelError: The adapter has none.
    """
    weight = adapter_state(folder).get(SCORE_KEY)
    if weight is None:
        raise no_score_head(folder)
    return weight


def _linear_modules(config: PretrainedConfig, *, trust_remote_code: bool) -> tuple[str, dict[str, set[type]]]:
    """Name of the list of blocks, and the kinds of the linear modules in them by the end of their name."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    root, _ = find_blocks(skeleton)
    linear = {
        name: Conv1D if isinstance(module, Conv1D) else nn.Linear
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    outside = [name for name in linear if not name.startswith(f"{root}.")]
    ends: dict[str, set[type]] = {}
    for name, kind in linear.items():
        if name in outside:
            continue
        parts = name.removeprefix(f"{root}.").split(".")[1:]
        # The last part says enough (`q_proj`) unless it is a number or something outside the blocks has it
        # too.
        size = 1
        while size < len(parts) and (
            parts[-size].isdigit() or any(_ends_with(other, ".".join(parts[-size:])) for other in outside)
        ):
            size += 1
        ends.setdefault(".".join(parts[-size:]), set()).add(kind)
    return root.rpartition(".")[2], ends


def _kinds_of(target: str, linear: dict[str, set[type]]) -> set[type]:
    return {
        kind for end, kinds in linear.items() if _ends_with(end, target) or _ends_with(target, end) for kind in kinds
    }


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _chosen_blocks(model: ModelConfig, config: PretrainedConfig, pattern: str) -> dict[str, Any]:
    if model.tuning.layers is None:
        return {}
    last, blocks = model.tuning.layers.last, num_blocks(config)
    if last > blocks:
        raise ModelError(
            f"model.tuning.layers.last={last}, but {model.base!r} has {blocks} blocks. At most that many can "
            f"carry adapters. Set it to {blocks} or less, or remove model.tuning.layers for all."
        )
    return {"layers_to_transform": list(range(blocks - last, blocks)), "layers_pattern": pattern}


def _state(peft_model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    # "auto" would ask the hub whether the vocabulary was changed.
    state: dict[str, Tensor] = get_peft_model_state_dict(
        peft_model, adapter_name=adapter_name, save_embedding_layers=False
    )
    return state


def _check_keys(saved: dict[str, Tensor], current: dict[str, Tensor], folder: Path) -> None:
    """Same tensors of the same shapes, but for the head, which one of the two tasks does not have."""
    for key in sorted((saved.keys() | current.keys()) - {SCORE_KEY}):
        found = tuple(saved[key].shape) if key in saved else "nothing"
        wanted = tuple(current[key].shape) if key in current else "nothing"
        if found != wanted:
            raise ModelError(
                f"the adapter at {folder} does not fit the model: {key} is {found} in the file and {wanted} "
                "in the model. Base, rank, target modules and blocks have to be those of model.base and "
                "model.tuning. Set them to the adapter's, or train the adapter again."
            )


def _plain(value: Any) -> Any:
    """Make a configuration value JSON with one spelling."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, enum.Enum):
        return value.value
    return value


@contextmanager
def _forked_random_state(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
