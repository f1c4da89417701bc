"""A vLLM server of the stage's own: started on a loopback port, waited for, ended with everything below it.

Does not import vllm; the server does, in its own process.
"""

import logging
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from data.errors import StageError
from stages.guard import GRACE_SECONDS, guard_command
from stages.models.config import ModelConfig
from stages.process import source_root
from stages.process_tree import end_tree
from stages.rollouts.config import VLLMConfig
from stages.rollouts.vllm_limits import MAX_LOGPROBS, max_lora_rank

logger = logging.getLogger(__name__)

# `vllm serve` runs the same, but asks for a distribution named `vllm`, which the CPU build is not.
_MODULE = "vllm.entrypoints.openai.api_server"
_HOST = "127.0.0.1"
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 10.0
_ENDING_SECONDS = 3.0
_DYING_SECONDS = 5.0
_LOG_LINES = 15
_LOG_BYTES = 64 * 1024
# Of a stage with several ranks: the server is no rank of theirs.
_LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_LAUNCHER_PREFIX = "TORCHELASTIC_"


def server_arguments(
    config: VLLMConfig, model: ModelConfig, *, served: Path | str, max_length: int, seed: int
) -> list[str]:
    """Arguments of the server that make it the engine that `VLLMBackend` is in process.

    Args:
        config: Memory and speed.
        model: The model section.
        served: Folder or hub id of the base's weights.
        max_length: Longest prompt and response, in tokens.
        seed: Seed of the engine.
    """
    return [
        f"--model={served}",
        *([f"--revision={model.revision}"] if model.revision else []),
        *(["--trust-remote-code"] if model.trust_remote_code else []),
        f"--dtype={model.dtype}",
        f"--seed={seed % 2**31}",
        "--enable-lora",
        "--max-loras=1",
        "--max-cpu-loras=2",
        f"--max-lora-rank={max_lora_rank(model.tuning.rank)}",
        f"--max-model-len={max_length}",
        f"--gpu-memory-utilization={config.gpu_memory_utilization}",
        *(["--enforce-eager"] if config.enforce_eager else []),
        "--enable-prefix-caching" if config.prefix_caching else "--no-enable-prefix-caching",
        # Log-probabilities after the temperature, those of the distribution that is sampled from.
        "--logprobs-mode=processed_logprobs",
        f"--max-logprobs={MAX_LOGPROBS}",
        "--generation-config=vllm",
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
    ]


class VLLMProcess:
    """A server from `__init__` to `close`. Its key is made for it and known to nobody else."""

    def __init__(self, arguments: Sequence[str], *, kv_cache_gib: float, log_path: Path) -> None:
        """Start it; it does not answer yet.

        Args:
            arguments: From `server_arguments`.
            kv_cache_gib: Memory for the key-value cache on a CPU, in GiB.
            log_path: Takes all that the server says.
        """
        port = _free_port()
        self.address = f"http://{_HOST}:{port}"
        self.api_key = secrets.token_urlsafe(32)
        self._log_path = log_path
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in _LAUNCHER_VARIABLES and not name.startswith(_LAUNCHER_PREFIX)
        }
        paths = [str(source_root()), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment |= {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "VLLM_API_KEY": self.api_key,  # not an argument: those are shown to every user of the machine
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(max(round(kv_cache_gib), 1)),
        }
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                guard_command(_MODULE, f"--host={_HOST}", f"--port={port}", *arguments),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process at the top."""
        return self._process.pid

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Wait until the server answers.

        Raises:
            StageError: It ended, or did not answer in time.
        """
        start = time.monotonic()
        next_report = _REPORT_SECONDS
        with httpx.Client(base_url=self.address, trust_env=False, timeout=_POLL_SECONDS * 4) as http:
            while not _is_healthy(http):
                seconds = time.monotonic() - start
                if self._status_within(_POLL_SECONDS) is not None:
                    raise StageError(
                        f"rollout.engine: the vLLM server did not start; a base and settings that vLLM can serve are "
                        f"needed: {self.what_to_do()}"
                    )
                if seconds > timeout_seconds:
                    raise StageError(
                        f"rollout.engine: the vLLM server did not answer within {timeout_seconds:g} s; raise "
                        f"`rollout.server.startup_timeout_seconds`, or see what holds it up: {self.what_to_do()}"
                    )
                if seconds >= next_report:
                    next_report += _REPORT_SECONDS
                    logger.info("vLLM server: not up after %.0f s; its log is %s", seconds, self._log_path)
        logger.info("vLLM server: up after %.0f s", time.monotonic() - start)

    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self._process.poll() is None

    def stays_up(self) -> bool:
        """Whether it still answers some seconds from now: the end of an engine takes the server down after a while."""
        deadline = time.monotonic() + _DYING_SECONDS
        with httpx.Client(base_url=self.address, trust_env=False, timeout=_DYING_SECONDS) as http:
            while time.monotonic() < deadline:
                if not _is_healthy(http) or self._status_within(_POLL_SECONDS) is not None:
                    return False
        return True

    def what_to_do(self) -> str:
        """How the server is, and the end of its log; for messages about a server that failed."""
        status = self._status_within(_ENDING_SECONDS)  # one that has just broken off is about to end
        state = "it still runs" if status is None else f"it has ended with status {status}"
        return f"{state}; see its log {self._log_path}, which ends with\n{_last_lines(self._log_path)}"

    def close(self) -> None:
        """End the server and all that it started. Twice does no harm."""
        end_tree(self._process, GRACE_SECONDS + _ENDING_SECONDS)

    def _status_within(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_healthy(http: httpx.Client) -> bool:
    try:
        return http.get("/health").is_success
    except httpx.TransportError:
        return False


def _last_lines(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _LOG_BYTES, 0))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join(f"    {line[:300]}" for line in text.splitlines()[-_LOG_LINES:])
