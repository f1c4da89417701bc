"""Serves the labeling page on the loopback interface until Ctrl-C.

Port and token stay the same for a run, so that a page that is still open goes on when the server is started again; the
file that holds them is its owner's alone.
"""

import json
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from data.errors import ConfigError

SERVER = "server.json"
HOST = "127.0.0.1"


def kept_token(folder: Path) -> tuple[str, int | None]:
    """The token of a run's page, made where there is none, and the port that it had last."""
    path = folder / SERVER
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return str(kept["token"]), int(kept["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return secrets.token_urlsafe(32), None


def listen(port: int | None, last: int | None) -> socket.socket:
    """A socket on the loopback interface.

    Args:
        port: That the user wants; None leaves it to us.
        last: That this run's page had before.

    Raises:
        ConfigError: The wanted port is taken, or may not be had.
    """
    for candidate in [port] if port is not None else [last, 0]:
        if candidate is None:
            continue
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, candidate))
            listening.listen(64)
        except OSError as error:
            listening.close()
            if port is not None:
                raise ConfigError(
                    f"--port {port}: cannot be used ({error.strerror}); a free port is needed; give another one, or "
                    f"leave it out"
                ) from error
            continue
        return listening
    raise ConfigError(f"{HOST}: no port is free; end a program that listens on one")


def keep(folder: Path, token: str, port: int) -> None:
    """Write down token and port, for the owner alone."""
    path, new = folder / SERVER, folder / f".{SERVER}.{os.getpid()}"
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"token": token, "port": port}, file)
    new.replace(path)


def serve(folder: Path, make_app: Callable[[str], Starlette], port: int | None, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        folder: Of the labeling.
        make_app: Makes the application for a token.
        port: That the user wants.
        tell: Called with the address when the page can be opened.

    Raises:
        ConfigError: As for `listen`.
    """
    token, last = kept_token(folder)
    listening = listen(port, last)
    number: int = listening.getsockname()[1]
    keep(folder, token, number)
    server = uvicorn.Server(
        uvicorn.Config(make_app(token), log_level="warning", access_log=False, server_header=False, lifespan="off")
    )
    tell(f"http://{HOST}:{number}/#token={token}")
    with listening:
        server.run(sockets=[listening])
