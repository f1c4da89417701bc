"""Saved adapters by their files, without torch: damaged, pickled, not finite, of another base or of other settings.

So what `rlhf validate` refuses of an adapter that the configuration names is what each stage refuses of its inputs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import ModelError
from stages.models.config import ModelConfig
from stages.models.own_base import names_own_base, read_classifier, read_own_base
from stages.models.reward_members import check_heads, member_folders
from stages.models.safetensors_files import Tensor, check_safetensors, first_not_finite
from stages.models.sources import base_kind, base_tensors, check_classifier

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
SCORE_KEY = "base_model.model.score.weight"
"""Key of the head in a saved reward model."""

_PICKLED_WEIGHTS = "adapter_model.bin"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def adapter_config(folder: Path) -> dict[str, Any]:
    """Read a saved adapter's configuration.

    Raises:
        ModelError: It is missing or no LoRA configuration.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: no readable adapter configuration ({error}). An adapter folder holds {ADAPTER_WEIGHTS} "
            f"and {ADAPTER_CONFIG}. Name such a folder, or run the stage that makes it again."
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"{path}: peft_type is {found!r}. A LoRA adapter is needed. Name another adapter.")
    return config


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The header of a saved adapter's weights, which are read once to see that they are finite.

    Raises:
        ModelError: The weights are missing, pickled, damaged or not finite.
    """
    path = folder / ADAPTER_WEIGHTS
    where = f"{folder}: no readable adapter weights"
    if not path.is_file():
        if (folder / _PICKLED_WEIGHTS).is_file():
            raise ModelError(
                f"{where}: {_PICKLED_WEIGHTS} is pickled, which can run code when it is loaded. {ADAPTER_WEIGHTS} is "
                "needed. If you trust the file, save the adapter again with PEFT's `save_pretrained`."
            )
        raise ModelError(
            f"{where}: {ADAPTER_WEIGHTS} is missing. An adapter folder holds {ADAPTER_WEIGHTS} and {ADAPTER_CONFIG}. "
            "Name such a folder, or run the stage that makes it again."
        )
    tensors = check_safetensors(path, where)
    broken = first_not_finite(path, tensors)
    if broken is not None:
        raise ModelError(
            f"{path}: the weight {broken} holds NaN or infinity. Finite weights are needed. Name another adapter, or "
            "run the stage that makes it again."
        )
    return tensors


def check_adapter(folder: Path, model: ModelConfig, *, config_dir: Path | None = None) -> dict[str, Tensor]:
    """Refuse an adapter that is damaged, or of another base, rank, scale, modules or blocks than the section says.

    Args:
        folder: The saved adapter.
        model: The model section.
        config_dir: Folder of the configuration file, to see that two spellings of a path are one folder.

    Returns:
        Its tensors by name.

    Raises:
        ModelError: Naming the first difference.
    """
    config = adapter_config(folder)
    tuning = model.tuning
    saved_base = str(config.get("base_model_name_or_path"))
    if not _same_base(saved_base, model.base, config_dir) or config.get("revision") != model.revision:
        raise ModelError(
            f"the adapter at {folder} was trained on base {_spec(saved_base, config.get('revision'))}, but "
            f"model.base is {_spec(model.base, model.revision)}. An adapter works on its own base only. "
            "Set model.base to the adapter's, or train the adapter again."
        )
    last = None if tuning.layers is None else tuning.layers.last
    blocks = config.get("layers_to_transform")
    differences: list[tuple[str, Any, Any]] = [
        ("model.tuning.rank", config.get("r"), tuning.rank),
        ("model.tuning.alpha", config.get("lora_alpha"), tuning.alpha),
        ("model.tuning.rslora", config.get("use_rslora"), tuning.rslora),
        ("model.tuning.layers.last", None if blocks is None else len(blocks), last),
    ]
    if tuning.target_modules != "all-linear":
        targets = sorted(config.get("target_modules") or [])
        differences.append(("model.tuning.target_modules", targets, sorted(set(tuning.target_modules))))
    for setting, found, wanted in differences:
        if found != wanted:
            raise ModelError(
                f"the adapter at {folder} has {setting}={found!r}, the configuration {wanted!r}. All stages "
                f"share one tuning section. Set {setting} to {found!r}, or train the adapter again."
            )
    tensors = adapter_tensors(folder)
    _check_shapes(tensors, tuning.rank, base_tensors(model, config_dir), folder)
    return tensors


def check_reward_model(folder: Path, model: ModelConfig, *, config_dir: Path | None) -> None:
    """Refuse a reward model that fits neither the shared base nor the base written beside it, or a member of one.

    Raises:
        ModelError: Naming the first difference.
    """
    ready = read_classifier(folder)
    if ready is not None:
        with names_own_base("pretrained"):
            check_classifier(ready.as_model(), config_dir)
        return
    own = read_own_base(folder)
    for member in member_folders(folder):
        if own is None:
            tensors = check_adapter(member, model, config_dir=config_dir)
        else:
            with names_own_base():
                tensors = check_adapter(member, own, config_dir=config_dir)
        _check_score_head(member, tensors)
        check_heads(member)


def _check_score_head(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    head = tensors.get(SCORE_KEY)
    if head is None:
        raise no_score_head(folder)
    if head.shape[:1] != (1,):
        raise ModelError(
            f"{folder}: the score head ({SCORE_KEY}) is of shape {head.shape}. A reward model with one score is "
            "needed. Name a reward model that the stage `reward_model` made."
        )


def no_score_head(folder: Path) -> ModelError:
    """The message for an adapter that is no reward model."""
    return ModelError(
        f"{folder}: the adapter has no score head ({SCORE_KEY}). A reward model is needed, trained with "
        "task type SEQ_CLS. Name a reward model's folder."
    )


def _check_shapes(tensors: Mapping[str, Tensor], rank: int, base: Mapping[str, Tensor], folder: Path) -> None:
    """Compare each A and B with the rank and, where the base's files hold its weight by that name, with its shape."""
    for key, tensor in tensors.items():
        if not key.endswith((_DOWN, _UP)) or len(tensor.shape) != 2:
            continue
        found, width = tensor.shape if key.endswith(_DOWN) else tensor.shape[::-1]
        if found != rank:
            raise ModelError(
                f"the adapter at {folder} has a rank of {found} in {key}, but its {ADAPTER_CONFIG} says {rank}. "
                "Weights and configuration of one adapter are needed. Copy the adapter again, or train it again."
            )
        weight = _weight_below(key, base)
        # A `Conv1D` of GPT-2 keeps its weight transposed, so that either side may be meant.
        if weight is not None and width not in weight.shape:
            raise ModelError(
                f"the adapter at {folder} does not fit model.base: {key} is {tensor.shape}, for a weight of {width}, "
                f"and that of the base is {weight.shape}. An adapter works on its own base only. Set model.base to the "
                "adapter's, or train the adapter again."
            )


def _weight_below(key: str, base: Mapping[str, Tensor]) -> Tensor | None:
    module = key.removeprefix(_PREFIX).removesuffix(_DOWN).removesuffix(_UP)
    # Some files leave the name of the trunk out (GPT-2 on the hub).
    return base.get(f"{module}.weight") or base.get(f"{module.partition('.')[2]}.weight")


def _same_base(saved: str, wanted: str, config_dir: Path | None) -> bool:
    if saved == wanted:
        return True
    if base_kind(saved, config_dir) != "local" or base_kind(wanted, config_dir) != "local":
        return False
    root = Path.cwd() if config_dir is None else config_dir
    return (root / Path(saved).expanduser()).resolve() == (root / Path(wanted).expanduser()).resolve()


def _spec(base: str, revision: Any) -> str:
    return repr(base) if revision is None else f"{base!r} at revision {revision!r}"
