"""Where the page is served: the loopback interface alone, with a key that stays, in a file for its owner."""

import json
import socket
from pathlib import Path

import pytest

from data.errors import ConfigError
from pipeline.labeling.serving import keep, kept_token, listen


def test_port_and_key_stay(tmp_path: Path) -> None:
    token, port = kept_token(tmp_path)
    assert port is None and len(token) > 40 and token != kept_token(tmp_path)[0]
    keep(tmp_path, token, 4321)
    keep(tmp_path, token, 1234)
    assert kept_token(tmp_path) == (token, 1234)
    path = tmp_path / "server.json"
    assert path.stat().st_mode & 0o777 == 0o600 and [entry.name for entry in tmp_path.iterdir()] == ["server.json"]
    path.write_text(json.dumps({"token": token}), encoding="utf-8")
    assert kept_token(tmp_path)[0] != token


def test_it_listens_on_the_loopback_alone_and_takes_another_port_where_its_own_is_taken() -> None:
    with listen(None, None) as first:
        host, port = first.getsockname()
        assert host == "127.0.0.1"
        with listen(None, port) as second:
            assert second.getsockname()[1] != port
        with pytest.raises(ConfigError, match=rf"--port {port}: cannot be used \(Address already in use\)"):
            listen(port, None)
    with listen(None, port) as again:
        assert again.getsockname()[1] == port
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
