"""The process of its own that talks to W&B, so that training never waits for it and never fails with it.

Started by `pipeline.tracking`. Reads JSON lines from standard input (`stage_started`, `stage_finished`),
follows the `metrics.jsonl` of the current stage and mirrors it into one W&B run a stage. Writes JSON lines to
standard output: `{"problem": text}`, each once, and `{"url": address}` when online. It ends when its input
ends, which also happens when its parent dies. It imports nothing of this project, so only its file has to be
found.
"""

import json
import os
import queue
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO
from urllib.parse import quote

POLL_SECONDS = 0.5
INIT_TIMEOUT_SECONDS = 30
# W&B's own 15 s would lose a whole short stage when the process is killed.
FLUSH_SECONDS = 0.5
_MAX_NAME = 128


@dataclass
class MetricsTail:
    """The part of a `metrics.jsonl` that was not read yet.

    Attributes:
        path: The file; it may not exist yet.
        stale: `file_state` of what an earlier attempt left there; not read while it is unchanged.
    """

    path: Path
    stale: list[int] | None = None
    _offset: int = 0

    def read(self) -> list[dict[str, Any]]:
        """The rows that were completed since the last call; a line without its end is left for later."""
        state = file_state(self.path)
        if state is None or state == self.stale:
            return []
        self.stale = None
        if state[0] < self._offset:  # the stage was started again and emptied the file
            self._offset = 0
        with self.path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [row for line in complete.splitlines() if (row := _parse_row(line)) is not None]


def file_state(path: Path) -> list[int] | None:
    """Size, inode and time of change of a file, or None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns]


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written; W&B itself would silently go to a temporary one.

    Raises:
        RuntimeError: The folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RuntimeError(
            f"{folder}: cannot be written ({error.strerror}); the run goes on without W&B; make room there "
            f"or set `tracking.mode: disabled`"
        ) from error


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # a killed attempt's half line that a later one appended to
        return None
    return row if isinstance(row, dict) else None


def log_row(run: Any, row: dict[str, Any]) -> None:
    """Log one line of `metrics.jsonl`, at the step that it names and without its nulls."""
    values = {name: value for name, value in row.items() if value is not None}
    step = row.get("step")
    if not isinstance(step, int):
        run.log(values)
        return
    # W&B drops what goes back in steps (a stage that was tried again): such rows follow at the end instead.
    run.log(values, step=step if step >= run.step else run.step + 1)


def artifact_name(run: str, stage: str) -> str:
    """Name of a stage's artifact, in the characters that W&B allows."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{run}-{stage}")[:_MAX_NAME]


def _run_name(settings: dict[str, Any], stage: str) -> str:
    """Name of a W&B run; that of a resumed run says which segment it is."""
    segment = settings["segment"]
    return f"{settings['run']}-{stage}" + ("" if segment == 1 else f"-{segment}")


@dataclass
class Mirror:
    """What the worker knows between two messages.

    Attributes:
        settings: `run`, `segment`, `run_dir`, `mode`, `project` and `entity`, from the parent.
        out: Where messages to the parent go.
        run: The open W&B run, if any.
        started: The message that opened it.
        tail: The metrics of its stage.
        logged: W&B artifacts of this run's earlier stages, by our digest.
    """

    settings: dict[str, Any]
    out: TextIO
    run: Any = None
    started: dict[str, Any] = field(default_factory=dict)
    tail: MetricsTail | None = None
    logged: dict[str, Any] = field(default_factory=dict)
    _broken: bool = False
    _told: set[str] = field(default_factory=set)

    def handle(self, message: dict[str, Any]) -> None:
        """Act on one message; a failure of W&B is told once and ends the tracking of that stage."""
        if message["event"] == "stage_started":
            self._attempt(self._finish)  # an attempt that never said how it ended
            self._attempt(lambda: self._start(message))
        elif message["event"] == "stage_finished":
            if not self._attempt(lambda: self._stage_finished(message)):
                self._attempt(self._finish)

    def follow(self) -> None:
        """Log the rows that were written since the last call."""
        if self.run is not None and not self._attempt(self._log_rows):
            self._attempt(self._finish)

    def end(self) -> None:
        """Close what is still open: the parent is gone or stopped in the middle of a stage."""
        self.follow()
        self._attempt(self._finish)

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        # A boundary: whatever a version of W&B raises, the pipe has to be drained and the run goes on.
        except Exception as error:
            self._tell(error)
            return False
        return True

    def _log_rows(self) -> None:
        if self.tail is not None:
            for row in self.tail.read():
                log_row(self.run, row)

    def _start(self, message: dict[str, Any]) -> None:
        if self._broken:
            return
        self.started = message
        self.tail = MetricsTail(Path(message["metrics_path"]), message["stale"])
        if not self._attempt(lambda: self._init(message)):
            # Offline it would fail for each stage again; online the server may be out of reach.
            self._broken = self.settings["mode"] == "offline"
            self.settings["mode"] = "offline"
            if self._broken or not self._attempt(lambda: self._init(message)):
                self._broken = True
                return
            self._send(problem="W&B: no server; this run is kept offline from here on")
        if self.settings["mode"] == "online":
            self._send(url=f"{self.run.project_url}/groups/{quote(self.settings['run'], safe='')}")
            self._attempt(lambda: self._use_inputs(message["inputs"]))

    def _init(self, message: dict[str, Any]) -> None:
        folder = Path(self.settings["run_dir"]) / "wandb"
        check_folder(folder)
        import wandb  # here, so that a broken installation is told as any other problem

        offline = self.settings["mode"] == "offline"
        self.run = wandb.init(
            project=self.settings["project"],
            entity=self.settings["entity"],
            group=self.settings["run"],
            job_type=message["stage"],
            name=_run_name(self.settings, message["stage"]),
            dir=self.settings["run_dir"],
            config={
                "run": self.settings["run"],
                "segment": self.settings["segment"],
                "stage_name": message["stage"],
                "stage": message["config"],
                "model": message["model"],
                "inputs": _identities(message["inputs"]),
                "prefect_flow_run_id": message["prefect_flow_run_id"],
            },
            settings=wandb.Settings(
                mode=self.settings["mode"],
                silent=True,
                console="off",
                init_timeout=INIT_TIMEOUT_SECONDS,
                x_transaction_log_flush_interval=FLUSH_SECONDS,
                x_disable_stats=offline,
                x_disable_machine_info=offline,
                x_disable_meta=offline,
                x_save_requirements=not offline,
                # The address of a git remote may hold a password; the code of the run is in its fingerprint.
                disable_git=True,
                disable_code=True,
            ),
        )

    def _use_inputs(self, inputs: dict[str, Any]) -> None:
        """Declare the inputs to the server; offline W&B cannot, and `config.inputs` has to do."""
        import wandb

        for role, artifact in inputs.items():
            known = self.logged.get(artifact["digest"])
            if known is None:  # made by another run, which may never have been uploaded
                known = wandb.Artifact(
                    artifact_name(self.settings["run"], f"input-{role}"),
                    type=artifact["type"],
                    metadata={"digest": artifact["digest"], "parents": artifact["parents"]},
                )
                known.add_dir(artifact["path"], policy="immutable")
                self.logged[artifact["digest"]] = known
            self.run.use_artifact(known)

    def _stage_finished(self, message: dict[str, Any]) -> None:
        if self.run is None or self.tail is None or message["stage"] != self.started.get("stage"):
            return
        if message["status"] == "cached":
            self.tail.stale = None  # copied from the store, perhaps before the stage was announced
        self._log_rows()
        self.run.log({})  # commits the last row: its figures would else replace the stage's final ones
        artifact = message["artifact"]
        self.run.config.update(
            {
                "status": message["status"],
                "cached": message["status"] == "cached",
                "fingerprint": message["fingerprint"],
                "artifact": None if artifact is None else _identities({"artifact": artifact})["artifact"],
            },
            allow_val_change=True,
        )
        figures = {name: value for name, value in message["metrics"].items() if value is not None}
        self.run.summary.update(figures)
        if artifact is not None:
            self._attempt(lambda: self._log_artifact(message, artifact))
        self._finish(exit_code=1 if message["status"] == "failed" else 0)

    def _log_artifact(self, message: dict[str, Any], artifact: dict[str, Any]) -> None:
        import wandb

        made = wandb.Artifact(
            artifact_name(self.settings["run"], message["stage"]),
            type=artifact["type"],
            metadata={
                "digest": artifact["digest"],
                "fingerprint": message["fingerprint"],
                "parents": artifact["parents"],
                "inputs": _identities(self.started["inputs"]),
            },
        )
        # Immutable: the store never changes a payload, and W&B then needs no copy of it.
        made.add_dir(artifact["path"], policy="immutable")
        self.run.log_artifact(made)
        self.logged[artifact["digest"]] = made

    def _finish(self, exit_code: int = 1) -> None:
        run, self.run, self.tail = self.run, None, None
        if run is not None:
            run.finish(exit_code=exit_code)

    def _tell(self, error: Exception) -> None:
        problem = "W&B: " + (" ".join(str(error).split()) or type(error).__name__)
        if problem not in self._told:
            self._told.add(problem)
            self._send(problem=problem)

    def _send(self, **message: str) -> None:
        try:
            print(json.dumps(message), file=self.out, flush=True)
        except (OSError, ValueError):
            pass  # nobody listens any more


def _identities(artifacts: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {role: {"type": artifact["type"], "digest": artifact["digest"]} for role, artifact in artifacts.items()}


def _read_messages(pipe: BinaryIO, messages: "queue.Queue[dict[str, Any] | None]") -> None:
    """Empty the pipe at once, whatever W&B is doing: the parent gives up on a full pipe."""
    for line in pipe:
        messages.put(json.loads(line))
    messages.put(None)


def _take_pipes() -> tuple[BinaryIO, TextIO]:
    """Keep the pipes to the parent from W&B and its child processes.

    A child that inherits the input would hide the worker's death from the parent, and whatever W&B prints
    would end up among the messages.
    """
    pipe, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return pipe, out


def main() -> int:
    """Mirror until standard input ends; the first argument holds the settings as JSON."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the open run is closed
    pipe, out = _take_pipes()
    mirror = Mirror(settings=json.loads(sys.argv[1]), out=out)
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read_messages, args=(pipe, messages), daemon=True).start()
    try:
        while True:
            try:
                message = messages.get(timeout=POLL_SECONDS)
            except queue.Empty:
                mirror.follow()
                continue
            if message is None:
                return 0
            mirror.handle(message)
    finally:
        mirror.end()


if __name__ == "__main__":
    sys.exit(main())
