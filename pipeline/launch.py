"""How a stage's code is started: in this process, in one of its own, or on several ranks.

All ways lead through `stages.run`, and a stage cannot tell them apart.
"""

import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from data.config import source_parts
from data.errors import StageError, UserError
from data.redaction import redact
from pipeline.children import python_command, run_child
from pipeline.config import DISTRIBUTED_STAGES, LaunchConfig, PipelineConfig
from stages.artifacts import write_json
from stages.memory_errors import memory_advice
from stages.models.sources import base_kind, offline_environment
from stages.process import source_root
from stages.run import StageSpec, run_stage
from stages.waiting import WaitingForPeople

Progress = Callable[[int, int, str], None]
Log = Callable[[str], None]

_LOGGERS = ("stages", "data", "rewards")
_PROGRESS = "::progress:: "
_USER_ERROR = "::user-error:: "
_STAGE_ERROR = "::stage-error:: "
_WAITING = "::waiting:: "
_TAIL_LINES = 20
_KILLED = "Signal 9 (SIGKILL) received"  # torchrun's words for a rank
# Last line of a rank's traceback; the launcher's own, which follows, says only that a rank failed.
_RANK_ERROR = re.compile(r"^\[rank\d+\]: ([\w.]+(?:Error|Exception)\b.*)")
# Last line of a traceback whose cause lies in the network, as printed by a child.
_CONNECTION_ERROR = re.compile(
    r"^[\w.]*(ConnectionError|ConnectTimeout|ReadTimeout|ConnectError|TimeoutError|HfHubHTTPError)\b"
)


def stage_environment(config: PipelineConfig, config_dir: Path | None) -> dict[str, str]:
    """Settings of the libraries below the stages; an inline run needs them before the first heavy import."""
    uses_hub = any(part.hub is not None for _, _, part in source_parts(config.data))
    own = config.own_reward_base
    uses_hub = uses_hub or (own is not None and base_kind(own.base, config_dir) == "hub")
    variables = {
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
        **offline_environment(config.model, uses_hub=uses_hub, config_dir=config_dir),
    }
    if config.launch.device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"
    return variables


def set_environment(variables: dict[str, str]) -> None:
    """Set what the user has not set; children inherit it."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def execute(spec: StageSpec, launch: LaunchConfig, log: Log, progress: Progress) -> dict[str, Any]:
    """Run a stage and return its manifest.

    Args:
        spec: What to run.
        launch: How to run it.
        log: Called with each line that the stage says; the lines also go to `log.txt` in the stage's folder.
        progress: Called with (steps done, steps in all, what is going on).

    Raises:
        UserError: The user's data, model or settings are at fault.
        ConnectionError: The network failed; trying again may help.
        StageError: The stage's process failed. Inline, its own exception comes through.
        WaitingForPeople: The stage is to be executed again when people have done their part.
    """
    spec.stage_dir.mkdir(parents=True, exist_ok=True)
    with (spec.stage_dir / "log.txt").open("a", encoding="utf-8") as file:

        def write(line: str) -> None:
            line = redact(line)
            with contextlib.suppress(OSError):  # a full disk: whoever reads the stage's output has to go on reading
                file.write(line + "\n")
                file.flush()
            log(line)

        if launch.mode == "inline":
            with _forwarded_loggers(write):
                return _execute_inline(spec, file, write, progress)
        return _execute_in_process(spec, launch, write, progress)


def _execute_inline(spec: StageSpec, log_file: TextIO, log: Log, progress: Progress) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(_LineWriter(log)):  # trainers print their figures
            return run_stage(spec, progress)
    except (UserError, WaitingForPeople):
        raise
    except Exception:  # of whatever kind: a process of its own would leave its traceback in the log, too
        log_file.write(redact(traceback.format_exc()))
        raise


def _execute_in_process(spec: StageSpec, launch: LaunchConfig, log: Log, progress: Progress) -> dict[str, Any]:
    ranks = launch.num_processes if _is_distributed(spec, launch) else 1
    spec_path = spec.stage_dir / ".spec.json"
    write_json(spec_path, replace(spec, deepspeed=_deepspeed_config(spec, launch)).to_json())
    command = _command(spec, launch, spec_path)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    user_errors: list[str] = []
    stage_errors: list[str] = []
    causes: list[str] = []
    waiting: list[Path] = []

    def on_line(line: str) -> None:
        before, marker, payload = line.partition(_USER_ERROR)
        if marker:
            user_errors.append(redact(json.loads(payload)))
            return
        before, marker, payload = line.partition(_STAGE_ERROR)
        if marker:
            stage_errors.append(redact(json.loads(payload)))
            return
        before, marker, payload = line.partition(_WAITING)
        if marker:
            waiting.append(Path(json.loads(payload)))
            return
        before, marker, payload = line.partition(_PROGRESS)
        if marker:
            progress(*json.loads(payload))
            return
        before = redact(before)
        tail.append(before)
        if match := _RANK_ERROR.match(before):
            causes.append(match[1])
        log(before)

    try:
        status = run_child(command, _child_environment(ranks), on_line, is_launcher=_is_distributed(spec, launch))
    finally:
        spec_path.unlink(missing_ok=True)
    if status == 0:
        manifest: dict[str, Any] = json.loads((spec.stage_dir / "manifest.json").read_text(encoding="utf-8"))
        return manifest
    if waiting:
        raise WaitingForPeople(waiting[0])
    if user_errors:
        raise UserError(user_errors[0])
    if stage_errors:
        raise StageError(stage_errors[0])
    lines = "\n".join(f"  | {line}" for line in tail if line.strip())
    cause = f": {causes[0]}" if causes else ""
    ended = f"{spec.stage}: its process ended with {_status_words(status)}{cause}"
    if status == -signal.SIGKILL or any(_KILLED in line for line in tail):
        advice = memory_advice(spec.stage, "", spec.config, spec.model, ranks)
        ended += f". If that was for memory, {advice}. `rlhf resume {spec.stage_dir.parent.name}` goes on"
    text = f"{ended}. Its last lines:\n{lines}"
    if any(_CONNECTION_ERROR.match(line) for line in (*tail, *causes)):
        raise ConnectionError(text)
    raise StageError(text)


def _is_distributed(spec: StageSpec, launch: LaunchConfig) -> bool:
    return launch.mode in ("accelerate", "deepspeed") and spec.stage in DISTRIBUTED_STAGES


def _command(spec: StageSpec, launch: LaunchConfig, spec_path: Path) -> list[str]:
    if not _is_distributed(spec, launch):
        return python_command("stages.run", str(spec_path))
    return python_command(
        "torch.distributed.run",
        # A free port on this host for the rendezvous, so that two runs at a time do not meet.
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--rdzv-id=rlhf",
        "--local-addr=127.0.0.1",
        "--nnodes=1",
        f"--nproc-per-node={launch.num_processes}",
        "-m",
        "stages.run",
        str(spec_path),
    )


def _deepspeed_config(spec: StageSpec, launch: LaunchConfig) -> dict[str, Any] | None:
    """DeepSpeed's settings. `auto` takes the trainer's own value, so that each is said once."""
    if not _is_distributed(spec, launch) or launch.mode != "deepspeed":
        return None
    return {
        "zero_optimization": {"stage": launch.zero_stage},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
    }


def _child_environment(ranks: int) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("PREFECT_API_AUTH_STRING", None)  # no stage speaks to Prefect
    root = str(source_root())
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if ranks > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
        # Gloo looks up this host's name otherwise, which fails where it has no address.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def _status_words(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    memory = " (the system ends processes so when memory runs out)" if name == "SIGKILL" else ""
    return f"signal {name}{memory}"


class _LineWriter(io.TextIOBase):
    """A text stream that hands on each line once it is whole."""

    def __init__(self, write: Log) -> None:
        super().__init__()
        self._write = write
        self._rest = ""

    def write(self, text: str) -> int:
        """Take text; of a line that redraws itself only what stood last is handed on."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._write(line.rpartition("\r")[2])
        return len(text)


class _LineHandler(logging.Handler):
    """Hands on the text of each record."""

    def __init__(self, write: Log) -> None:
        super().__init__(logging.INFO)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record))


@contextmanager
def _forwarded_loggers(write: Log) -> Iterator[None]:
    """Send what the stages' loggers say to `write` while the stage runs in this process."""
    handler = _LineHandler(write)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        sys.stdout.flush()
