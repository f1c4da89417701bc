"""What the report shows, read from a run's folder. Everything may be missing: runs fail or go on still."""

import datetime
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.errors import ArtifactError

NUM_SAMPLES = 8


@dataclass(frozen=True)
class StageView:
    """One stage of the run.

    Attributes:
        name: Name of the stage.
        status: As in `run.json`.
        seconds: Wall-clock time, if known.
        fingerprint: Key of the execution, or an empty text.
        artifact: `{type, path, digest, parents}`, or empty.
        metrics: The stage's final figures.
        error: Text of the failure, or empty.
        manifest: `manifest.json`, or empty.
        rows: `metrics.jsonl`.
    """

    name: str
    status: str
    seconds: float | None = None
    fingerprint: str = ""
    artifact: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Digest of the artifact, or an empty text."""
        return str(self.artifact.get("digest") or "")


@dataclass(frozen=True)
class RunView:
    """The run.

    Attributes:
        name: Name of the run.
        record: `run.json`.
        stages: Its stages, in order.
        config_text: `config.yaml` as it stands.
        config: The same, parsed.
        samples: Rows of the evaluation's `samples.jsonl`.
    """

    name: str
    record: dict[str, Any]
    stages: list[StageView]
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def stage(self, name: str) -> StageView | None:
        """A stage by its name, if the run has it."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The evaluation's figures, or empty."""
        stage = self.stage("evaluation")
        return stage.metrics if stage is not None else {}


def load_run(run_dir: Path) -> RunView:
    """Read a run's folder.

    Raises:
        ArtifactError: There is no readable `run.json`.
    """
    record = _read_json(run_dir / "run.json")
    if not record:
        raise ArtifactError(
            f"{run_dir / 'run.json'}: missing or no JSON object; a report needs the folder of a run; "
            f"`rlhf runs` lists them"
        )
    stages = [_load_stage(run_dir, entry) for entry in record.get("stages") or [] if entry.get("name")]
    evaluated = any(stage.name == "evaluation" and stage.status in ("executed", "cached") for stage in stages)
    samples = read_rows(run_dir / "evaluation" / "artifact" / "samples.jsonl") if evaluated else []
    config_path = run_dir / "config.yaml"
    config_text = config_path.read_text(encoding="utf-8", errors="replace") if config_path.is_file() else ""
    return RunView(
        name=str(record.get("run") or run_dir.name),
        record=record,
        stages=stages,
        config_text=config_text,
        config=_parse_yaml(config_text),
        samples=samples[:NUM_SAMPLES],
    )


def _load_stage(run_dir: Path, entry: dict[str, Any]) -> StageView:
    folder = run_dir / str(entry["name"])
    manifest = _read_json(folder / "manifest.json")
    done = entry.get("status") in ("executed", "cached")  # else what lies there is of an earlier attempt
    return StageView(
        name=str(entry["name"]),
        status=str(entry.get("status") or "unknown"),
        seconds=number(entry.get("seconds")),
        fingerprint=str(entry.get("fingerprint") or ""),
        artifact=entry.get("artifact") or {},
        metrics=entry.get("metrics") or (manifest.get("metrics") if done else None) or {},
        error=str(entry.get("error") or ""),
        manifest=manifest,
        rows=read_rows(folder / "metrics.jsonl"),
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; a line that is none (cut off by a kill) is left out."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def number(value: Any) -> float | None:
    """A finite number as float; anything else is None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def elapsed_seconds(run: RunView) -> float | None:
    """Wall-clock time of the run, or of its stages where the run has not ended."""
    started, finished = (parse_time(run.record.get(key)) for key in ("started", "finished"))
    if started is not None and finished is not None:
        return (finished - started).total_seconds()
    seconds = [stage.seconds for stage in run.stages if stage.status == "executed" and stage.seconds is not None]
    return sum(seconds) if seconds else None


def parse_time(value: Any) -> datetime.datetime | None:
    """A time from ISO text or from seconds since 1970; None where it is neither."""
    try:
        if isinstance(value, str):
            time = datetime.datetime.fromisoformat(value)
            return time if time.tzinfo is not None else time.replace(tzinfo=datetime.UTC)
        if (seconds := number(value)) is not None:
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _parse_yaml(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}
