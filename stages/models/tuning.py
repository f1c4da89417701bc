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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data.errors import ModelError
from stages.models.config import ModelConfig
from stages.models.loading import SCORE_HEAD, find_blocks, num_blocks
from stages.models.sources import base_kind

Task = Literal["causal_lm", "seq_cls"]

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
SCORE_KEY = f"base_model.model.{SCORE_HEAD}.weight"
"""Key of the head in a saved reward model."""


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
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), adapter_name, is_trainable=trainable, torch_device=device)
        peft_model = model
    else:
        peft_model = PeftModel.from_pretrained(
            model, str(folder), adapter_name=adapter_name, is_trainable=trainable, torch_device=device
        )
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
        ModelError: The file is missing or damaged.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path}: no readable adapter weights ({error}). An adapter folder holds {ADAPTER_WEIGHTS} and "
            f"{ADAPTER_CONFIG}. Name such a folder, or run the stage that makes it again."
        ) from error
    return state


def score_weight(folder: Path) -> Tensor:
    """Read the head of a saved reward model, `[1, d]` in float32.

    Raises:
        ModelError: The adapter has none.
    """
    weight = adapter_state(folder).get(SCORE_KEY)
    if weight is None:
        raise ModelError(
            f"{folder}: the adapter has no score head ({SCORE_KEY}). A reward model is needed, trained with "
            "task type SEQ_CLS. Name a reward model's folder."
        )
    return weight


def adapter_config(folder: Path) -> dict[str, Any]:
    """Read a saved adapter's configuration.

    Raises:
        ModelError: It is missing or no LoRA configuration.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: no readable adapter configuration ({error}). An adapter folder holds {ADAPTER_WEIGHTS} "
            f"and {ADAPTER_CONFIG}. Name such a folder, or run the stage that makes it again."
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"{path}: peft_type is {found!r}. A LoRA adapter is needed. Name another adapter.")
    return config


def check_adapter(folder: Path, model: ModelConfig, *, config_dir: Path | None = None) -> None:
    """Refuse an adapter of another base, rank, scale, modules or blocks than the model section says.

    Args:
        folder: The saved adapter.
        model: The model section.
        config_dir: Folder of the configuration file, to see that two spellings of a path are one folder.

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


def _same_base(saved: str, wanted: str, config_dir: Path | None) -> bool:
    if saved == wanted:
        return True
    if base_kind(saved, config_dir) != "local" or base_kind(wanted, config_dir) != "local":
        return False
    root = Path.cwd() if config_dir is None else config_dir
    return (root / Path(saved).expanduser()).resolve() == (root / Path(wanted).expanduser()).resolve()


def _spec(base: str, revision: Any) -> str:
    return repr(base) if revision is None else f"{base!r} at revision {revision!r}"


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
