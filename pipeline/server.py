"""A real Prefect server for the time of a run, shared by the runs of one user at the same time.

The ephemeral server that Prefect would start in our process loses rows at its end. So the first run starts
`prefect server start` as a process of its own, further runs attach to it, and the last one stops it. Who uses
it stands in PREFECT_HOME/rlhf-server: a lock, `server.json` and one file for each client. Imports no prefect:
the server starts while the rest of the run is still being prepared.

It listens on the loopback interface and wants a login, for its API can change things and every user of the machine
reaches the loopback. The login is random for each server; `server.json` holds it, for its owner alone.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from data.errors import ConfigError, StageError
from stages.process import source_root

HEALTHY_WITHIN_SECONDS = 120.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.25


class ServerLease:
    """The use of a server by this process; `release` stops the server if nobody else uses it."""

    def __init__(self, api_url: str, client_file: Path | None, login: str | None = None) -> None:
        """Use `lease_server`. Without a client file the server is the user's own and is left alone."""
        self.api_url = api_url
        self.login = login
        self._client_file = client_file
        self._folder = None if client_file is None else client_file.parent

    @property
    def ui_url(self) -> str:
        """Address of the user interface."""
        return self.api_url.removesuffix("/api")

    @property
    def environment(self) -> dict[str, str]:
        """What Prefect's client needs to speak to the server; a user's own server has its login from the user."""
        login = {} if self.login is None else {"PREFECT_API_AUTH_STRING": self.login}
        return {"PREFECT_API_URL": self.api_url, **login}

    def wait_until_healthy(
        self, timeout_seconds: float = HEALTHY_WITHIN_SECONDS, cancelled: threading.Event | None = None
    ) -> None:
        """Wait for the server to answer.

        Args:
            timeout_seconds: How long to wait.
            cancelled: Ends the waiting when set.

        Raises:
            StageError: Our server ended, or did not answer in time.
            ConfigError: The user's server does not answer.
        """
        deadline = time.monotonic() + timeout_seconds
        while not answers(self.api_url) and not (cancelled is not None and cancelled.is_set()):
            if self._folder is None:
                raise ConfigError(
                    f"PREFECT_API_URL={self.api_url}: no Prefect server answers there; start it, or unset the "
                    f"variable (and the profile's setting): then the run starts a server of its own"
                )
            state = _read_state(self._folder)
            if state is None or not _is_alive(state):
                raise StageError(
                    f"the Prefect server ended while it started; its last lines:\n{_log_tail(self._folder)}"
                )
            if time.monotonic() > deadline:
                raise StageError(
                    f"the Prefect server did not answer at {self.api_url} within {timeout_seconds:.0f} s; "
                    f"its log is {self._folder / 'server.log'}; set PREFECT_API_URL to use another server"
                )
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Stop using the server; the last one to leave stops it."""
        if self._client_file is None:
            return
        folder = self._client_file.parent
        with _locked(folder):
            self._client_file.unlink(missing_ok=True)
            if not _live_clients(folder):
                _stop_server(folder)


def configured_api_url() -> str | None:
    """The Prefect API that the user chose: PREFECT_API_URL, else that of the active profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or prefect_home() / "profiles.toml").expanduser()
    try:
        content = tomllib.loads(profiles.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # no profiles, or a file that Prefect itself will complain of
    name = os.environ.get("PREFECT_PROFILE") or content.get("active", "")
    url = content.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def retire_if_unused(folder: Path) -> bool:
    """Have nobody attach any more to the server above which this process stands, if no living process uses it."""
    with _locked(folder):
        if _live_clients(folder):
            return False
        state = _read_state(folder)
        if state is not None and state["pid"] == os.getpid():
            (folder / "server.json").unlink(missing_ok=True)
        return True


def server_answers(folder: Path) -> bool:
    """Whether the server of this folder answers."""
    state = _read_state(folder)
    return state is not None and answers(state["api_url"])


def prefect_home() -> Path:
    """Prefect's folder: its database, and our files on the shared server."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()


def lease_server() -> ServerLease:
    """Attach to the user's server, else to the shared one, else start that. Does not wait for it."""
    if url := configured_api_url():
        return ServerLease(url.rstrip("/"), None)
    folder = prefect_home() / "rlhf-server"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        state = _read_state(folder)
        clients = _live_clients(folder)
        if state is None or not _is_alive(state):
            state = _start_server(folder)
        elif not clients and not answers(state["api_url"]):
            # Left by a killed run, and nobody waits for it: do not inherit a server that hangs.
            _stop_server(folder)
            state = _start_server(folder)
        # One file a lease, not a process: a program may run several flows at a time.
        client_file = folder / f"client-{os.getpid()}-{secrets.token_hex(4)}.json"
        client_file.write_text(json.dumps(_identity(os.getpid())), encoding="utf-8")
    return ServerLease(state["api_url"], client_file, state.get("login"))


def _start_server(folder: Path) -> dict[str, Any]:
    port, login = _free_port(), f"rlhf:{secrets.token_urlsafe(32)}"
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {
        # As variables: with `--port` the user interface goes on calling port 4200.
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        # Not arguments: those are shown to every user of the machine.
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_API_AUTH_STRING": login,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }
    paths = [str(source_root()), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.server_watch", str(folder)],
            env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    state = {**_identity(process.pid), "api_url": f"http://127.0.0.1:{port}/api", "login": login}
    path = folder / "server.json"
    path.unlink(missing_ok=True)  # an older version's may be readable by all
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(state, file)
    return state


def _stop_server(folder: Path) -> None:
    """SIGTERM to the process above it, then SIGKILL to all. SIGINT was seen to hang for half a minute."""
    state = _read_state(folder)
    (folder / "server.json").unlink(missing_ok=True)
    if state is None or not _is_alive(state):
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        server = psutil.Process(state["pid"])
        processes = [server, *server.children(recursive=True)]
        server.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_STOP_SECONDS)


def answers(api_url: str) -> bool:
    """Whether something speaks HTTP at the address. A refusal (a login is needed) is an answer."""
    try:
        # No proxy: it could not reach the loopback of this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if "127.0.0.1" in api_url else None
        request = f"{api_url}/health"
        with (opener.open if opener else urllib.request.urlopen)(request, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    file: IO[str]
    with (folder / "lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _identity(pid: int) -> dict[str, Any]:
    """A process id alone may be given to another process later; with its start time it may not."""
    return {"pid": pid, "created": psutil.Process(pid).create_time()}


def _is_alive(identity: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(identity["pid"])
        # The tolerance: the start time is derived from the boot time, which drifts with the clock.
        return abs(process.create_time() - identity["created"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError):
        return False


def _live_clients(folder: Path) -> list[Path]:
    """The files of clients that live; those of the others are removed."""
    live = []
    for file in folder.glob("client-*.json"):
        identity = _read_json(file)
        if identity is not None and _is_alive(identity):
            live.append(file)
        else:
            file.unlink(missing_ok=True)
    return live


def _read_state(folder: Path) -> dict[str, Any] | None:
    return _read_json(folder / "server.json")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _log_tail(folder: Path) -> str:
    try:
        lines = (folder / "server.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  | {line}" for line in lines[-12:])
