"""A chat endpoint: what is sent, kept, counted, paced and refused; a local server stands in for the model."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data import asking, endpoint
from data.endpoint import ChatEndpoint
from data.endpoint_config import ChatEndpointConfig
from data.errors import ConfigError, StageError
from data.schema import Message

Reply = Callable[[dict[str, Any]], Any]


def completion(text: Any, prompt_tokens: int = 100, completion_tokens: int = 10) -> dict[str, Any]:
    """An answer in OpenAI's form."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "usage": usage}


class Model:
    """What a served stand-in has been asked, and how it answers."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: list[tuple[int, dict[str, str]]] = []
        self.address = ""


@contextmanager
def served(reply: Reply) -> Iterator[Model]:
    """Serve a stand-in on this machine. `statuses` are answered first, before any answer of the model."""
    model = Model(reply)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                model.requests.append(body)
                model.headers.append(dict(self.headers) | {"path": self.path})
                status, headers = model.statuses.pop(0) if model.statuses else (200, {})
            answer = model.reply(body) if status == 200 else {"error": "not now"}
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    model.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def settings(model: Model, **values: Any) -> ChatEndpointConfig:
    """Of the stand-in."""
    return ChatEndpointConfig.model_validate({"address": model.address, "model": "stand-in"} | values)


def said(*texts: str) -> list[tuple[Message, ...]]:
    """Conversations of one turn."""
    return [(Message(role="user", content=text),) for text in texts]


def echo(body: dict[str, Any]) -> dict[str, Any]:
    """The last turn in capitals."""
    return completion(body["messages"][-1]["content"].upper())


def test_what_is_sent_and_in_which_order_answers_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with served(echo) as model:
        asked = ChatEndpoint(settings(model, token_env="JUDGE_KEY", max_tokens=7), tmp_path / "a.sqlite", setting="x")
        told: list[tuple[int, int]] = []
        texts = [f"q{number}" for number in range(20)]
        assert asked.ask_all(said(*texts), progress=lambda *done: told.append(done)) == [t.upper() for t in texts]
        assert told[-1] == (20, 20) and len(model.requests) == 20
    assert model.headers[0]["path"] == "/v1/chat/completions" and model.headers[0]["Authorization"] == "Bearer secret"
    request = next(body for body in model.requests if body["messages"][0]["content"] == "q3")
    assert request == {
        "model": "stand-in", "temperature": 0.0, "max_tokens": 7, "messages": [{"role": "user", "content": "q3"}]
    }  # fmt: skip


def test_answers_are_kept_and_cost_once(tmp_path: Path) -> None:
    cache = tmp_path / "stage" / "a.sqlite"
    with served(lambda body: completion("ok", 1000, 500)) as model:
        prices = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 8.0}
        first = ChatEndpoint(settings(model, **prices), cache, setting="x")
        first.ask_all(said("a", "b"))
        assert (first.usage.requests, first.usage.cached) == (2, 0)
        assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (2000, 1000)
        assert first.usage.cost == pytest.approx(2 * (1000 * 2e-6 + 500 * 8e-6))
        again = ChatEndpoint(settings(model, **prices), cache, setting="x")
        assert again.ask_all(said("b", "c")) == ["ok", "ok"]
        assert (again.usage.requests, again.usage.cached) == (1, 1) and len(model.requests) == 3
        other = ChatEndpoint(settings(model, temperature=0.5), cache, setting="x")
        other.ask_all(said("a"))
        assert other.usage.cached == 0, "another question"


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    def until_b(body: dict[str, Any]) -> Any:
        return completion("ok") if body["messages"][0]["content"] == "a" else b"<html>"

    with served(until_b) as model:
        endpoint_of = ChatEndpoint(settings(model, max_concurrency=1), tmp_path / "a.sqlite", setting="p.judge")
        with pytest.raises(StageError, match=r"p\.judge: http.*answered b'<html>', which is no chat completion"):
            endpoint_of.ask_all(said("a", "b"))
        model.reply = echo
        again = ChatEndpoint(settings(model), tmp_path / "a.sqlite", setting="p.judge")
        assert again.ask_all(said("a", "b")) == ["ok", "B"] and again.usage.cached == 1


def test_failures_that_pass_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(asking.time, "sleep", slept.append)
    with served(echo) as model:
        model.statuses = [(503, {}), (429, {"Retry-After": "17"}), (500, {})]
        asked = ChatEndpoint(settings(model), tmp_path / "a.sqlite", setting="x")
        assert asked.ask_all(said("a")) == ["A"]
        assert slept == [1.0, 17.0, 4.0] and asked.num_retries == 3
        model.statuses = [(401, {})]
        with pytest.raises(StageError, match="answered 401 .* which another try would not change"):
            asked.ask_all(said("b"))
        model.statuses = [(503, {})] * 3
        patient = ChatEndpoint(settings(model, max_retries=2), tmp_path / "a.sqlite", setting="x")
        with pytest.raises(StageError, match="the last of 3 tries; a chat endpoint that answers within 120 s"):
            patient.ask_all(said("c"))


@pytest.mark.parametrize(
    "answer",
    [b"", b"not json", b"[]", b"{}", {"choices": []}, {"choices": [{"message": {}}]}, completion(None), completion(3),
     {**completion("x"), "usage": {"prompt_tokens": -1}}, {**completion("x"), "usage": {"completion_tokens": True}}],
)  # fmt: skip
def test_answers_that_are_no_completion_are_refused(answer: Any, tmp_path: Path) -> None:
    with served(lambda body: answer) as model:
        asked = ChatEndpoint(settings(model), tmp_path / "a.sqlite", setting="x")
        with pytest.raises(StageError, match="which is no chat completion; .* is needed: correct"):
            asked.ask_all(said("a"))
        assert asked.usage.requests == 0


def test_an_endpoint_that_does_not_count_tokens_and_half_a_character(tmp_path: Path) -> None:
    with served(lambda body: b'{"choices": [{"message": {"content": "half \\ud83d"}}], "usage": null}') as model:
        asked = ChatEndpoint(settings(model), tmp_path / "a.sqlite", setting="x")
        assert asked.ask_all(said("a")) == ["half ?"] and asked.usage.prompt_tokens == 0


def test_requests_go_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    pace = endpoint._Pace(30.0)
    monkeypatch.setattr(endpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(endpoint.time, "sleep", sleep)
    for _ in range(3):
        pace.wait()
    now[0] += 10.0
    pace.wait()
    pace.wait()
    assert slept == [2.0, 2.0, 2.0], "two seconds apart, and none are saved up while nothing is asked"
    endpoint._Pace(None).wait()
    assert len(slept) == 3


def test_several_are_on_their_way_at_once(tmp_path: Path) -> None:
    at_once, most, lock = [0], [0], threading.Lock()

    def slow(body: dict[str, Any]) -> Any:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        with lock:
            at_once[0] -= 1
        return completion("ok")

    with served(slow) as model:
        ChatEndpoint(settings(model, max_concurrency=3), tmp_path / "a.sqlite", setting="x").ask_all(said(*"abcdefghi"))
    assert 1 < most[0] <= 3


def test_a_missing_key_and_a_damaged_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    config = ChatEndpointConfig(address="http://127.0.0.1:9/v1/", model="m", token_env="JUDGE_KEY")
    assert config.address == "http://127.0.0.1:9/v1"
    with pytest.raises(
        ConfigError, match=r"x\.token_env=JUDGE_KEY: this environment variable is not set; put the chat"
    ):
        ChatEndpoint(config, tmp_path / "a.sqlite", setting="x")
    (tmp_path / "bad.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StageError, match=r"bad\.sqlite: the answers kept there cannot be read or written"):
        ChatEndpoint(config.model_copy(update={"token_env": None}), tmp_path / "bad.sqlite", setting="x")
