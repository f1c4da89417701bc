"""What a stage is: small frozen handles in, one artifact out. No tensor, no framework, no orchestration.

A stage module `stages/<name>/stage.py` has one function

    run(config, model, inputs, context) -> StageOutput

that reads its inputs from the handles, writes the artifact's files into `context.payload_dir` and returns
the final metrics. `stages.run` gives the payload its digest and moves it into the store.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from stages.interruption import Interruption
from stages.metrics import MetricsWriter

StageName = Literal["data", "sft", "preferences", "reward_model", "ppo", "evaluation"]
STAGE_NAMES: tuple[StageName, ...] = ("data", "sft", "preferences", "reward_model", "ppo", "evaluation")


@dataclass(frozen=True)
class Artifact:
    """A folder of files with a content digest.

    Attributes:
        path: The folder; read-only for whoever holds the handle.
        digest: SHA-256 over the sorted relative paths and bytes of the folder, in hexadecimal.
        parents: Digests of the artifacts that it was made from, by role.
    """

    path: Path
    digest: str
    parents: Mapping[str, str] = field(default_factory=dict)

    TYPE = "artifact"

    def to_json(self) -> dict[str, Any]:
        """As it stands in `run.json`, `manifest.json` and a stage's specification."""
        return {"type": self.TYPE, "path": str(self.path), "digest": self.digest, "parents": dict(self.parents)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a handle back; the inverse of `to_json`."""
        return cls(path=Path(data["path"]), digest=data["digest"], parents=dict(data["parents"]))


@dataclass(frozen=True)
class DatasetArtifact(Artifact):
    """Records of the `data` stage: `{demonstrations,preferences,prompts}/{train,held_out}.jsonl`."""

    TYPE = "dataset"


@dataclass(frozen=True)
class PreferenceDataset(Artifact):
    """Pairs of the `preferences` stage: `preferences/{train,held_out}.jsonl`."""

    TYPE = "preference_dataset"


@dataclass(frozen=True)
class PolicyArtifact(Artifact):
    """A PEFT adapter of a causal language model, with its tokenizer."""

    TYPE = "policy"


@dataclass(frozen=True)
class RewardModelArtifact(Artifact):
    """A PEFT adapter with a score head (`SEQ_CLS`), its tokenizer and `score_normalization.json`.

    `base_model.json` is there too where the adapter does not sit on the shared base, `members/` or
    `score_heads.safetensors` where it was trained as an ensemble.
    """

    TYPE = "reward_model"


@dataclass(frozen=True)
class EvaluationReport(Artifact):
    """`metrics.json` and `samples.jsonl`."""

    TYPE = "evaluation_report"


ARTIFACT_TYPES: dict[str, type[Artifact]] = {
    kind.TYPE: kind
    for kind in (DatasetArtifact, PreferenceDataset, PolicyArtifact, RewardModelArtifact, EvaluationReport)
}
STAGE_OUTPUTS: dict[StageName, type[Artifact]] = {
    "data": DatasetArtifact,
    "sft": PolicyArtifact,
    "preferences": PreferenceDataset,
    "reward_model": RewardModelArtifact,
    "ppo": PolicyArtifact,
    "evaluation": EvaluationReport,
}


def artifact_from_json(data: Mapping[str, Any]) -> Artifact:
    """Read a handle of any type back."""
    return ARTIFACT_TYPES[data["type"]].from_json(data)


@dataclass(frozen=True)
class CheckpointSchedule:
    """When a stage writes a checkpoint, and how many stay. No part of what it computes.

    Attributes:
        every_steps: After each multiple of this many steps; None leaves it to the minutes.
        every_minutes: After the first step that ends this long after the last checkpoint; None leaves it to the steps.
        keep: The newest ones that stay.
    """

    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 2


@dataclass(frozen=True)
class StageContext:
    """What a stage may use beside its inputs.

    Attributes:
        payload_dir: Empty folder for the artifact's files; it becomes the artifact.
        scratch_dir: Folder for checkpoints and logs of trainers; removed when the stage is done.
        stage_dir: Folder of this execution in its run: for logs, and for what a failed stage leaves. No part of the
            artifact.
        seed: Seed of the run; a stage derives every random state from it.
        device: `cpu` or `cuda`.
        metrics: One JSON object a step, the source of truth.
        report_progress: Called with (steps done, steps in all, what is going on).
        config_dir: Folder of the configuration file, for relative paths in it.
        deepspeed: DeepSpeed's configuration, where the stage runs under it.
        fingerprint: Of this execution; a checkpoint of another one is not read.
        checkpoints: When to write checkpoints, into `stage_dir/checkpoints`.
        interruption: Whether the stage was asked to end while it trained.
        timings: Seconds that are no work of the stage itself, by part, for its manifest.
        token_dir: Folder of tokens that other executions made and left (`stages.token_cache`); None keeps none.
    """

    payload_dir: Path
    scratch_dir: Path
    stage_dir: Path
    seed: int
    device: Literal["cpu", "cuda"]
    metrics: MetricsWriter
    report_progress: Callable[[int, int, str], None]
    config_dir: Path | None = None
    deepspeed: dict[str, Any] | None = None
    fingerprint: str = ""
    checkpoints: CheckpointSchedule = CheckpointSchedule()
    interruption: Interruption = field(default_factory=Interruption)
    timings: dict[str, float] = field(default_factory=dict)
    token_dir: Path | None = None


@dataclass(frozen=True)
class StageOutput:
    """What a stage returns.

    Attributes:
        metrics: The stage's final figures, flat, `group/name`.
        notes: Facts for the manifest that are no metrics: rows dropped, the pad token chosen.
    """

    metrics: dict[str, float]
    notes: dict[str, Any] = field(default_factory=dict)
