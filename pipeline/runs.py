"""The folder of a run: its name, `config.yaml` and `run.json`, which tools may read while it runs."""

import datetime
import difflib
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from data.errors import ConfigError
from data.redaction import redact_values
from pipeline.locks import is_locked, release, try_lock
from pipeline.run_record import RECORD, RunStatus, read_run_record
from stages.artifacts import write_json
from stages.contract import Artifact, StageName, artifact_from_json

STORE = "store"
_LOCK = ".lock"
GC_LOCK = ".gc.lock"
"""In the folder of runs: held while what no run uses is removed."""
_LOOK_SECONDS = 0.5  # longer than anybody who only looks whether a run is held holds it

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunFolder:
    """One run on disk. `run.json` is replaced atomically at each change."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        """Use `create_run` or `open_run`."""
        self.path = path
        self.record = record
        self._lock: TextIO | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def output_dir(self) -> Path:
        """Folder of all runs."""
        return self.path.parent

    @property
    def store_dir(self) -> Path:
        """Folder of the artifacts that the runs share."""
        return self.output_dir / STORE

    @property
    def output_dir_option(self) -> str:
        """What a command on this run has to say of where it is; empty for the usual place."""
        usual = self.output_dir == Path("outputs").resolve()
        return "" if usual else f" --output-dir {shlex.quote(str(self.output_dir))}"

    @property
    def config_dir(self) -> Path | None:
        """Folder of the configuration file that the run was started with; relative paths may start there."""
        path = self.record.get("config_path")
        return Path(path).parent if path else None

    def stage(self, name: StageName) -> dict[str, Any] | None:
        """The entry of a stage, if the run has it."""
        return next((entry for entry in self.record["stages"] if entry["name"] == name), None)

    def stage_dir(self, name: StageName) -> Path:
        """Folder of a stage's manifest, metrics and log."""
        return self.path / name

    def artifact(self, name: StageName) -> Artifact | None:
        """The artifact that the run recorded for a stage, with its absolute path."""
        entry = self.stage(name)
        if entry is None or not entry.get("artifact"):
            return None
        recorded = entry["artifact"]
        return artifact_from_json({**recorded, "path": str(self.output_dir / recorded["path"])})

    def hold(self) -> None:
        """Keep the run to this process until `let_go` or its end, however it ends.

        Raises:
            ConfigError: Another process has it.
        """
        deadline = time.monotonic() + _LOOK_SECONDS
        while (lock := try_lock(self.path / _LOCK)) is None:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"run {self.name}: process {self.record.get('pid')} is still at it; wait for its end, or end it "
                    f"(Ctrl-C, or `kill {self.record.get('pid')}`) before it is resumed"
                )
            time.sleep(_LOOK_SECONDS / 10)
        self._lock = lock
        while is_locked(self.output_dir / GC_LOCK):  # it takes moments, and has seen no run at work
            time.sleep(_LOOK_SECONDS / 10)

    def is_held(self) -> bool:
        """Whether a process has the run, and lives."""
        return is_locked(self.path / _LOCK)

    def let_go(self) -> None:
        """Let others have the run."""
        if self._lock is not None:
            release(self._lock, self.path / _LOCK)
            self._lock = None

    def update(self, **values: Any) -> None:
        """Change fields of the run and write `run.json`."""
        self.record.update(redact_values(values))
        write_json(self.path / RECORD, self.record)

    def update_stage(self, name: StageName, **values: Any) -> None:
        """Change fields of a stage's entry and write `run.json`."""
        entry = self.stage(name)
        assert entry is not None, name
        entry.update(redact_values(values))
        write_json(self.path / RECORD, self.record)

    def finish(self, status: RunStatus) -> None:
        """End the run: stages that never started count as skipped, one that was cut off as failed."""
        for entry in self.record["stages"]:
            if entry["status"] == "pending":
                entry["status"] = "skipped"
            elif entry["status"] in ("running", "waiting"):
                entry["status"] = "failed"
        self.update(status=status, finished=now())


def artifact_record(artifact: Artifact, output_dir: Path) -> dict[str, Any]:
    """An artifact as `run.json` has it: its path relative to `output_dir`, so that the folder can be moved."""
    path = os.path.relpath(artifact.path, output_dir)
    return {**artifact.to_json(), "path": Path(path).as_posix()}


def create_run(
    output_dir: Path,
    stem: str,
    name: str | None,
    config_text: str,
    stages: tuple[StageName, ...],
    **fields: Any,
) -> RunFolder:
    """Make a run's folder with `config.yaml` and `run.json` (status `running`).

    Args:
        output_dir: Folder of all runs.
        stem: Start of the name where none is given; the first free `<stem>-<n>` is taken.
        name: Name that the user gave.
        config_text: The resolved configuration as YAML.
        stages: The stages of the run, in order.
        fields: Further fields of `run.json`.

    Raises:
        ConfigError: The name cannot be used, or is taken.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        path = _new_folder(output_dir, stem, name)
    except OSError as error:
        if isinstance(error, FileExistsError) and name is not None and (output_dir / name).exists():
            raise ConfigError(
                f"{output_dir / name}: there is a run of this name already; give another name, or remove the folder"
            ) from error
        raise ConfigError(
            f"output_dir: cannot make a folder in {output_dir} ({error.strerror}); "
            f"give one that can be written, with --output-dir DIR"
        ) from error
    record = {
        "run": path.name,
        "status": "running",
        "started": now(),
        "pid": os.getpid(),
        **fields,
        "stages": [
            {
                "name": stage,
                "status": "pending",
                "seconds": None,
                "fingerprint": None,
                "artifact": None,
                "metrics": {},
            }
            for stage in stages
        ],
    }
    run = RunFolder(path, record)
    try:
        (path / "config.yaml").write_text(config_text, encoding="utf-8")
        run.hold()
        run.update()
    except OSError:
        run.let_go()
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run


def check_name(name: str) -> None:
    """Refuse a run name that is no plain folder name, or that the store needs.

    Raises:
        ConfigError: It is refused.
    """
    if name == STORE:
        raise ConfigError(f"run name {name!r}: the folder of that name holds the artifacts; give another name")
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(
            f"run name {name!r}: must be up to 100 letters, digits, `.`, `_` or `-` and start with a letter or "
            f"digit; give such a name, and the folder with --output-dir"
        )


def _new_folder(output_dir: Path, stem: str, name: str | None) -> Path:
    if name is not None:
        check_name(name)
        (output_dir / name).mkdir()
        return output_dir / name
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-_")[:80] or "run"
    number = 1
    while True:
        path = output_dir / f"{stem}-{number}"
        try:
            path.mkdir()
        except FileExistsError:  # taken, perhaps by a run that starts at this moment
            number += 1
            continue
        return path


def open_run(output_dir: Path, name: str) -> RunFolder:
    """Read a run's folder.

    Raises:
        ConfigError: There is no such run; near names are given. Or its record is damaged.
    """
    path = output_dir / name
    record = read_run_record(path) if _NAME.fullmatch(name) and name != STORE else None
    if record is None:
        names = [run.name for run in list_runs(output_dir)]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        if near:
            hint = f"Did you mean {' or '.join(near)}?"
        elif names:
            hint = f"`rlhf runs` lists the {len(names)} runs there"
        else:
            hint = "There are no runs there; name the folder with --output-dir DIR"
        raise ConfigError(f"{output_dir}: no run is called {name!r}. {hint}")
    return RunFolder(path, record)


def list_runs(output_dir: Path, on_damaged: Callable[[ConfigError], None] = lambda error: None) -> list[RunFolder]:
    """All runs of a folder, the oldest first.

    Args:
        output_dir: Folder of all runs.
        on_damaged: Called for each run whose record cannot be read; it is left out.
    """
    if not output_dir.is_dir():
        return []
    runs = []
    for path in sorted(output_dir.iterdir()):
        if path.name == STORE or not path.is_dir():
            continue
        try:
            record = read_run_record(path)
        except ConfigError as error:
            on_damaged(error)
            continue
        if record is not None:
            runs.append(RunFolder(path, record))
    return sorted(runs, key=lambda run: (run.record["started"], run.name))


def now() -> str:
    """The time as `run.json` has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
