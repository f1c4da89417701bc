"""A reward server that works, fails, is slow or says nonsense: by a real one on this machine."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from data import asking
from data.errors import ConfigError, StageError
from rewards.composite_config import RemoteRewardConfig
from rewards.contract import Episode
from rewards.remote import RemoteReward

Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers, body; None breaks the connection."""


class Server(ThreadingHTTPServer):
    """Answers the requests in turn, the last answer for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer | Callable[[Handler], None]] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        self.server.requests.append((self.path, dict(self.headers), body))
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer(self)
        elif answer is None:
            self.close_connection = True
        else:
            status, headers, content = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be slept; nobody sleeps them."""
    found: list[float] = []
    monkeypatch.setattr("data.asking.time.sleep", found.append)
    return found


def answered(value: Any, status: int = 200, **headers: str) -> Answer:
    return status, {name.replace("_", "-"): text for name, text in headers.items()}, json.dumps(value).encode()


SCORES = answered({"scores": [1, -2.5]})
EPISODES = [Episode(f"Say: {n}", text, (1,), (2,), "Say:", True) for n, text in enumerate(("a", "\u00fc"))]


def reward(server: Server, **settings: Any) -> RemoteReward:
    return RemoteReward(RemoteRewardConfig(address=server.address, **settings))


def test_prompts_and_responses_go_there_and_scores_come_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "t0ken")
    server.answers = [SCORES]
    assert reward(server)(EPISODES) == [1.0, -2.5]
    reward(server, token_env="REWARD_TOKEN")(EPISODES)
    (path, without, body), (_, headers, _) = server.requests
    assert path == "/score" and body == {"prompts": ["Say: 0", "Say: 1"], "responses": ["a", "\u00fc"]}
    assert "Authorization" not in without and headers["Authorization"] == "Bearer t0ken"


def test_a_token_that_is_not_there_is_the_users_fault(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    with pytest.raises(
        ConfigError, match=r"ppo\.rewards\[remote\]\.token_env=REWARD_TOKEN: this environment variable is not set"
    ):
        reward(server, token_env="REWARD_TOKEN")


@pytest.mark.parametrize("address", ["host:8080", "ftp://host", "https://user:key@host/", "http://host/s?key=1", ""])
def test_an_address_with_a_key_or_without_a_scheme_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="must be an address without a key in it; write it as http://host"):
        RemoteRewardConfig(address=address)


def test_a_server_that_comes_back_is_asked_again_with_growing_pauses(server: Server, pauses: list[float]) -> None:
    server.answers = [
        answered({}, 503), None, answered({}, 429), answered({}, 500), answered({}, 502), answered({}, 504), SCORES,
    ]  # fmt: skip
    assert reward(server)(EPISODES) == [1.0, -2.5]
    assert len(server.requests) == 7
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_a_server_that_stays_away_ends_the_stage_after_the_last_try(server: Server, pauses: list[float]) -> None:
    server.answers = [answered({"error": "no model"}, 503)]
    with pytest.raises(
        StageError,
        match=r"^ppo\.rewards\[remote\]: http://127\.0\.0\.1:\d+/score answered 503 '.*no model.*', the last of 3 "
        r"tries; .*bring it back, or raise `timeout_seconds` or `max_retries`$",
    ):
        reward(server, max_retries=2)(EPISODES)
    assert len(server.requests) == 3 and pauses == [1.0, 2.0]


def test_nobody_at_the_address_is_told_after_the_last_try(server: Server, pauses: list[float]) -> None:
    server.server_close()
    with pytest.raises(StageError, match=r"failed \(ConnectError: .*\), the last of 2 tries"):
        reward(server, max_retries=1)(EPISODES)
    assert pauses == [1.0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), ("99999", 600.0), ("-1", 1.0), ("nan", 1.0), ("soon", 1.0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0), ("Wed, 21 Oct 2189 07:28:00 GMT", 600.0)],
)  # fmt: skip
def test_a_server_says_itself_when_to_ask_again(
    server: Server, pauses: list[float], header: str, seconds: float
) -> None:
    server.answers = [answered({}, 429, Retry_After=header), SCORES]
    assert reward(server)(EPISODES) == [1.0, -2.5]
    assert pauses == [seconds]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 301, 501])
def test_a_refusal_is_told_at_once(server: Server, pauses: list[float], status: int) -> None:
    server.answers = [answered({"detail": "no"}, status, Location="http://127.0.0.1:1/")]
    with pytest.raises(StageError, match=rf"answered {status} '.*no.*', which another try would not change; .*token"):
        reward(server)(EPISODES)
    assert len(server.requests) == 1 and pauses == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((200, {}, b"<html>Sorry</html>"), r"answered b'<html>Sorry</html>', which is not \{'scores': \[\.\.\.\]\} in"),
        ((200, {}, b""), r"answered b'', which is not"),
        (answered([1.0, 2.0]), r"answered b'\[1\.0, 2\.0\]', which is not"),
        (answered({"score": [1.0, 2.0]}), "which is not"),
        (answered({"scores": 1.0}), r"gave 1\.0 \(float\)"),
        (answered({"scores": [1.0]}), "gave 1 scores; one finite number for each of 2 responses"),
        (answered({"scores": [1.0, float("nan")]}), r"gave nan \(float\) for the response '.' to the prompt 'Say: 1'"),
        (answered({"scores": ["1.0", 2.0]}), r"gave '1\.0' \(str\) for the response 'a'"),
        (answered({"scores": [1.0, None]}), r"gave None \(NoneType\)"),
        (answered({"scores": [[1.0], [2.0]]}), r"gave \[1\.0\] \(list\)"),
    ],
)
def test_an_answer_that_is_no_scores_is_told_and_not_asked_for_again(
    server: Server, pauses: list[float], answer: Answer, told: str
) -> None:
    server.answers = [answer]
    with pytest.raises(StageError, match=told):
        reward(server)(EPISODES)
    assert len(server.requests) == 1 and pauses == []


def test_a_server_that_says_nothing_is_given_up(server: Server, pauses: list[float]) -> None:
    released = threading.Event()

    def silent(handler: Handler) -> None:
        released.wait(30)

    server.answers = [silent, SCORES]
    assert reward(server, timeout_seconds=0.1)(EPISODES) == [1.0, -2.5]
    released.set()
    assert pauses == [1.0]


def test_a_server_that_trickles_is_given_up_though_each_piece_comes_in_time(
    server: Server,
) -> None:
    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            threading.Event().wait(0.02)

    server.answers = [trickle]
    start = time.monotonic()
    with pytest.raises(StageError, match=r"ReadTimeout: no whole answer within 0\.2 s"):
        reward(server, timeout_seconds=0.2, max_retries=0)(EPISODES)
    assert time.monotonic() - start < 5


def test_an_answer_without_end_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_MOST_BYTES", 1024**2)
    server.answers = [(200, {}, b" " * 1024**2 + b" ")]
    with pytest.raises(StageError, match="answered more than 1 MiB"):
        reward(server)(EPISODES)


def test_a_proxy_is_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    trusted = {
        host: RemoteReward(RemoteRewardConfig(address=f"http://{host}/"))._server._http.trust_env
        for host in ("localhost:1", "127.0.0.1", "[::1]:2", "judge.example")
    }
    assert trusted == {"localhost:1": False, "127.0.0.1": False, "[::1]:2": False, "judge.example": True}
    assert isinstance(RemoteReward(RemoteRewardConfig(address="http://judge.example"))._server._http, httpx.Client)


def test_a_batch_is_cut_and_its_scores_stay_in_order(server: Server) -> None:
    server.answers = [answered({"scores": [1, 2]}), answered({"scores": [3]})]
    three = [*EPISODES, EPISODES[0]]
    assert reward(server, batch_size=2)(three) == [1.0, 2.0, 3.0]
    assert [len(body["responses"]) for _, _, body in server.requests] == [2, 1]
    assert reward(server)([]) == []


def test_references_are_sent_where_there_are_some(server: Server) -> None:
    server.answers = [SCORES]
    reward(server)([replace(EPISODES[0], reference="42"), EPISODES[1]])
    assert server.requests[0][2]["references"] == ["42", None]


def test_a_server_is_asked_for_its_health_before_anything_else_and_until_it_is_well(
    server: Server, pauses: list[float]
) -> None:
    server.answers = [answered({}, 503), answered({"status": "ok"}), SCORES]
    made = reward(server, health="/up")
    assert server.requests == [], "nothing is sent before the stage asks"
    made.check_health()
    assert [path for path, _, _ in server.requests] == ["/up", "/up"] and pauses == [1.0]
    reward(server).check_health()
    assert len(server.requests) == 2, "nobody said where"
    elsewhere = reward(server, health=server.address.replace("/score", "/else"))
    elsewhere.check_health()
    assert server.requests[-1][0] == "/else"


def test_a_server_that_is_not_well_is_told(server: Server, pauses: list[float]) -> None:
    server.answers = [answered({"status": "loading"}, 503)]
    with pytest.raises(StageError, match=r"/up answered 503 '.*loading.*', the last of 2 tries"):
        reward(server, health="/up", max_retries=1).check_health()


@pytest.mark.parametrize("health", ["up", "ftp://host", "//user:key@host", "/up?key=1", ""])
def test_a_health_check_with_a_key_or_without_a_path_is_refused(health: str) -> None:
    with pytest.raises(ValidationError, match="must be a path on the same host or an address without a key"):
        RemoteRewardConfig(address="http://host/", health=health)
