"""W&B from the flow's side: small JSON lines to a process of its own, which does everything else.

Nothing here raises or waits, except that `close` gives the worker some time to finish. Whatever goes wrong is
logged as one warning, and the run goes on without W&B. The worker is `pipeline.tracking_worker`.
"""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from data.redaction import is_secret_name, redact_values
from pipeline import tracking_worker
from pipeline.config import TrackingConfig
from pipeline.tracking_worker import file_state

logger = logging.getLogger(__name__)

CLOSE_SECONDS = {"offline": 20.0, "online": 60.0}
# What belongs to one W&B run; inherited, it would make all stages one run or override the configuration.
_ONE_RUN_VARIABLES = (
    "WANDB_DISABLED", "WANDB_JOB_TYPE", "WANDB_MODE", "WANDB_NAME", "WANDB_PROJECT", "WANDB_RESUME",
    "WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_SERVICE", "WANDB_SWEEP_ID",
)  # fmt: skip


class Tracker:
    """Mirrors the stages of one run into W&B."""

    def __init__(self, process: subprocess.Popen[bytes] | None, mode: str, run_dir: Path) -> None:
        """Take over a started worker; None tracks nothing."""
        self._process = process
        self._mode = mode
        self._run_dir = run_dir
        self._lost = False
        self._url: str | None = None
        self._unread = b""

    def stage_started(
        self,
        stage: str,
        config: Mapping[str, Any],
        model: Mapping[str, Any],
        inputs: Mapping[str, Mapping[str, Any]],
        metrics_path: Path,
    ) -> None:
        """Open a W&B run and follow the stage's metrics; call it before the stage writes any.

        Args:
            stage: Name of the stage.
            config: Its section of the resolved configuration.
            model: The shared `model` section.
            inputs: Artifacts by role, as `Artifact.to_json` gives them.
            metrics_path: The stage's `metrics.jsonl`. What lies there now is of an earlier attempt.
        """
        self._send(
            {
                "event": "stage_started",
                "stage": stage,
                "config": config,
                "model": model,
                "inputs": inputs,
                "metrics_path": str(metrics_path.absolute()),
                "stale": file_state(metrics_path),
                "prefect_flow_run_id": os.environ.get("PREFECT__FLOW_RUN_ID"),
            }
        )

    def stage_finished(self, stage: str, manifest: Mapping[str, Any] | None, status: str) -> None:
        """Log the stage's artifact and close its W&B run.

        Args:
            stage: Name of the stage.
            manifest: Its manifest; None where it failed.
            status: `executed`, `cached` or `failed`.
        """
        manifest = manifest or {}
        # Not the whole manifest: its notes and file list may be larger than a pipe takes at once.
        self._send(
            {
                "event": "stage_finished",
                "stage": stage,
                "status": status,
                "artifact": manifest.get("artifact"),
                "fingerprint": manifest.get("fingerprint"),
                "metrics": manifest.get("metrics", {}),
            }
        )

    def close(self) -> list[str]:
        """Let the worker finish, at most `CLOSE_SECONDS`, and end it.

        Returns:
            What to print: where the runs are online, or the command that uploads them.
        """
        if self._process is None:
            return []
        limit = CLOSE_SECONDS[self._mode]
        self._close_input()
        late = False
        try:
            code = self._process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            late = True
        self._read_reports()
        if late:
            self._lose(f"W&B did not finish within {limit:.0f} s of the end of the run; it was stopped")
        elif code != 0:
            self._lose(f"the W&B process ended early (exit code {code})")
        _kill_tree(self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        return self._messages(unfinished=late)

    def _messages(self, *, unfinished: bool) -> list[str]:
        messages = [f"W&B: {self._url}"] if self._url else []
        folders = sorted((self._run_dir / "wandb").glob("offline-run-*"))
        options: list[str] = []
        if unfinished and self._mode == "online":
            folders += sorted((self._run_dir / "wandb").glob("run-*"))
            options = ["--include-online"]
        if folders:
            # The virtual environment of a `make demo` is not activated in the user's shell.
            program = "wandb" if shutil.which("wandb") else str(Path(sys.executable).with_name("wandb"))
            command = shlex.join([program, "sync", *options, *map(str, folders)])
            messages.append(f"W&B: kept offline in {self._run_dir / 'wandb'}; upload with:\n{command}")
        return messages

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is None or self._lost or self._process.stdin is None:
            return
        self._read_reports()
        line = json.dumps(redact_values(message), default=str).encode() + b"\n"
        try:
            written = os.write(self._process.stdin.fileno(), line)
        except BlockingIOError:
            written = 0
        except OSError:
            self._lose("the W&B process ended early; the run goes on without W&B")
            return
        if written < len(line):  # it empties the pipe before anything else, so it hangs
            self._lose("the W&B process does not read any more; the run goes on without W&B")
            _kill_tree(self._process)

    def _read_reports(self) -> None:
        """Take what the worker has said so far, without waiting."""
        if self._process is None or self._process.stdout is None:
            return
        try:
            while chunk := os.read(self._process.stdout.fileno(), 1 << 16):
                self._unread += chunk
        except BlockingIOError:
            pass
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "problem" in report:
                logger.warning("%s", report["problem"])
            self._url = report.get("url", self._url)

    def _lose(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            logger.warning("W&B: %s", reason)

    def _close_input(self) -> None:
        try:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()
        except OSError:
            pass  # the worker is gone, and `wait` will tell


def start_tracker(config: TrackingConfig, *, run: str, run_dir: Path, segment: int = 1) -> Tracker:
    """Start the worker of a run.

    Args:
        config: The `tracking` section. `auto` counts as `offline` where `WANDB_API_KEY` is not set.
        run: Name of the run and of its W&B group.
        segment: 1, and one more each time that the run was resumed: an offline W&B run cannot be gone on with, so a
            resumed stage is a new one in the same group, with the rows up to the checkpoint, too.
        run_dir: Folder of the run; everything of W&B goes into `run_dir/wandb`.

    Returns:
        The tracker; it tracks nothing where `config.mode` is `disabled` or no process could be started.
    """
    mode: str = config.mode
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    run_dir = run_dir.absolute()
    if mode == "disabled":
        return Tracker(None, mode, run_dir)
    settings = {
        "run": run,
        "segment": segment,
        "run_dir": str(run_dir),
        "mode": mode,
        "project": config.project,
        "entity": config.entity,
    }
    try:
        process = subprocess.Popen(
            # By file, not `-m`: the working folder may hold a `pipeline` or a `wandb` of the user's.
            [sys.executable, "-P", str(Path(tracking_worker.__file__)), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_worker_environment(mode, run_dir),
            start_new_session=True,  # Ctrl-C is for the flow, which then tells how the stage ended
        )
    except OSError as error:
        logger.warning("W&B: no process could be started for it: %s", error)
        return Tracker(None, mode, run_dir)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)
    return Tracker(process, mode, run_dir)


def _worker_environment(mode: str, run_dir: Path) -> dict[str, str]:
    folder = run_dir / "wandb"
    environment = {
        name: value
        for name, value in os.environ.items()
        # W&B needs its own key alone.
        if name not in _ONE_RUN_VARIABLES and (name.startswith("WANDB_") or not is_secret_name(name))
    }
    environment["WANDB_DIR"] = str(run_dir)
    environment["WANDB_DATA_DIR"] = str(folder / ".data")
    environment["WANDB_CACHE_DIR"] = str(folder / ".cache")
    environment["WANDB_ARTIFACT_DIR"] = str(folder / ".artifacts")
    environment.setdefault("WANDB_ERROR_REPORTING", "false")
    if mode == "offline":  # online the user's own folder says where to upload to
        environment["WANDB_CONFIG_DIR"] = str(folder / ".config")
    return environment


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    try:
        tree = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    except psutil.Error:
        tree = []
    for child in tree:
        try:
            child.kill()
        except psutil.Error:
            pass  # it ended by itself
    if process.poll() is None:
        process.kill()
        process.wait()
