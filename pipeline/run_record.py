"""Reading `run.json` back: what a run recorded of itself, or what is wrong with the file."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from data.errors import ConfigError
from stages.contract import ARTIFACT_TYPES, StageName

RunStatus = Literal["running", "completed", "failed", "cancelled"]
StageStatus = Literal["pending", "running", "waiting", "executed", "cached", "failed", "skipped"]
RECORD = "run.json"

_Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
_ArtifactType = Annotated[str, StringConstraints(pattern=f"^({'|'.join(ARTIFACT_TYPES)})$")]


class _Loose(BaseModel):
    """Only what is read again is checked; later versions may record more."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Artifact(_Loose):
    type: _ArtifactType
    path: str
    digest: _Digest
    parents: dict[str, _Digest]


class _Stage(_Loose):
    name: StageName
    status: StageStatus
    seconds: float | int | None
    fingerprint: str | None
    artifact: _Artifact | None
    metrics: dict[str, Any]


class _PlannedArtifact(_Loose):
    type: _ArtifactType
    digest: _Digest
    parents: dict[str, _Digest]


class _Recorded(_Loose):
    artifact: _PlannedArtifact
    fingerprint: str
    run: str | None = None


class _Plan(_Loose):
    forced: list[StageName]
    stored: list[StageName]
    skipped: list[StageName]
    recorded: dict[StageName, _Recorded]


class _Record(_Loose):
    run: str
    status: RunStatus
    started: str
    pid: int
    stages: list[_Stage]
    plan: _Plan | None = None
    config_path: str | None = None


def read_run_record(folder: Path) -> dict[str, Any] | None:
    """What `run.json` in a run's folder says.

    Returns:
        None where there is no such file: some other folder, or a run that has only just begun.

    Raises:
        ConfigError: It is cut off, or says something else than a record does.
    """
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        _Record.model_validate(record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise _damaged(path, f"{where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    return record


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path}: the record of run {path.parent.name} cannot be read ({what}); it must be as rlhf wrote it: bring it "
        f"back from a copy, or remove the run's folder"
    )
