"""A server that answers as vLLM 0.32 does, without a model: for what a real one cannot be made to do on demand.

    python -m tests.vllm_stand_in --host=127.0.0.1 --port=8000 --model=base ...

The next-token logits depend on the model's name and on the last token alone; each adapter has others.
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any

VOCABULARY = range(5, 45)


@dataclass
class Behaviour:
    """What this server is and does."""

    model: str = "base"
    api_key: str | None = "right"
    max_model_len: int = 64
    updates_adapters: bool = True
    processed_logprobs: bool = True
    max_lora_rank: int = 8
    lists_adapters: bool = True
    tokens_as_ids: bool = True
    delay_seconds: float = 0.0
    breaks_off: bool = False
    outages: list[int] = field(default_factory=list)
    """Of the next requests: a status, `0` to break off before the work, `-1` to break off after it."""
    adapters: dict[str, str] = field(default_factory=dict)
    completions: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0


def logits(model: str, last: int) -> dict[int, float]:
    """By token id."""
    numbers = random.Random(f"{model}/{last}")
    return {token: numbers.gauss(0.0, 1.5) for token in VOCABULARY}


def logprobs(model: str, last: int, temperature: float) -> dict[int, float]:
    """By token id, the likeliest first."""
    scaled = {token: value / temperature for token, value in logits(model, last).items()}
    total = math.log(sum(math.exp(value) for value in scaled.values()))
    return dict(sorted(((token, value - total) for token, value in scaled.items()), key=lambda pair: -pair[1]))


def complete(behaviour: Behaviour, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    numbers = random.Random(body["seed"])
    last = body["prompt"][-1]
    tokens: list[int] = []
    values: list[float] = []
    places: list[dict[str, float]] = []
    while len(tokens) < body["max_tokens"] and (not tokens or tokens[-1] not in body["stop_token_ids"]):
        sampled = logprobs(body["model"], last, body["temperature"])
        told = sampled if behaviour.processed_logprobs else logprobs(body["model"], last, 1.0)
        last = numbers.choices(list(sampled), [math.exp(value) for value in sampled.values()])[0]
        likeliest = {last: told[last]} | dict(list(told.items())[: body["logprobs"]])
        tokens.append(last)
        values.append(told[last])
        places.append({f"token_id:{token}": value for token, value in likeliest.items()})
    names = [f"token_id:{token}" if behaviour.tokens_as_ids else f" word{token}" for token in tokens]
    found = {"tokens": names, "token_logprobs": values, "top_logprobs": places, "text_offset": [0] * len(tokens)}
    return {"choices": [{"index": 0, "text": "", "logprobs": found, "token_ids": None}]}


class StandIn(ThreadingHTTPServer):
    """Serves one behaviour; change it while it runs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behaviour: Behaviour, host: str = "127.0.0.1", port: int = 0) -> None:
        self.behaviour = behaviour
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # a client that did not wait


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn
    _is_lost = False

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        behaviour = self.server.behaviour
        if self.path == "/health":
            self._answer(200, {})
        elif self._fails() or not self._is_allowed():
            return
        elif self.path == "/v1/models":
            base = {"id": behaviour.model, "root": behaviour.model, "parent": None}
            adapters = behaviour.adapters.items() if behaviour.lists_adapters else ()
            cards = [{"id": name, "root": path, "parent": behaviour.model} for name, path in adapters]
            self._answer(200, {"data": [base | {"max_model_len": behaviour.max_model_len}, *cards]})
        else:
            self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        behaviour = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if behaviour.breaks_off:
            self.close_connection = True
        elif self._fails() or not self._is_allowed():
            return
        elif self.path == "/v1/completions":
            self._complete(behaviour, body)
        elif not behaviour.updates_adapters:
            self._answer(404, {"detail": "Not Found"})
        elif self.path == "/v1/load_lora_adapter":
            self._load(behaviour, body["lora_name"], body["lora_path"])
        elif behaviour.adapters.pop(body["lora_name"], None) is None:
            self._refuse(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        else:
            self._answer(200, {})

    def _complete(self, behaviour: Behaviour, body: dict[str, Any]) -> None:
        behaviour.completions.append(body)
        behaviour.under_way += 1
        behaviour.most_under_way = max(behaviour.most_under_way, behaviour.under_way)
        try:
            time.sleep(behaviour.delay_seconds)
        finally:
            behaviour.under_way -= 1
        if body["model"] not in (behaviour.model, *behaviour.adapters):
            self._refuse(404, f"The model `{body['model']}` does not exist.")
        else:
            self._answer(200, complete(behaviour, body))

    def _load(self, behaviour: Behaviour, name: str, path: str) -> None:
        if name in behaviour.adapters:
            self._refuse(400, f"The lora adapter '{name}' has already been loaded.")
        elif not os.path.isdir(path):
            self._refuse(404, f"Loading lora {name} failed: No adapter found for {path}")
        else:
            with open(os.path.join(path, "adapter_config.json"), encoding="utf-8") as file:
                rank = json.load(file)["r"]
            if rank > behaviour.max_lora_rank:
                self._refuse(500, f"LoRA rank {rank} is greater than max_lora_rank {behaviour.max_lora_rank}.")
            else:
                behaviour.adapters[name] = path
                self._answer(200, {})

    def _fails(self) -> bool:
        outages = self.server.behaviour.outages
        self._is_lost = bool(outages) and outages[0] == -1
        outage = outages.pop(0) if outages else -1
        if outage == -1:
            return False
        if outage > 0:
            self._refuse(outage, "not now")
        self.close_connection = True
        return True

    def _is_allowed(self) -> bool:
        key = self.server.behaviour.api_key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._answer(401, {"error": "Unauthorized"})
        return False

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": "BadRequestError", "code": status}})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        if self._is_lost:
            self._is_lost, self.close_connection = False, True
            return
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main() -> None:
    """A process like vLLM's: an engine below it that outlives it when it is killed, and all arguments of a server."""
    parser = argparse.ArgumentParser()
    for option in ("host", "port", "model", "max-model-len", "max-lora-rank"):
        parser.add_argument(f"--{option}", required=True)
    options, others = parser.parse_known_args()
    print("arguments", options, others, flush=True)
    match options.model:
        case "refused":
            print("RuntimeError: Engine core initialization failed.", flush=True)
            sys.exit(1)
        case "slow":
            time.sleep(600)
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def leave(signal_number: int, frame: FrameType | None) -> None:
        engine.kill()
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    behaviour = Behaviour(
        model=options.model,
        api_key=os.environ["VLLM_API_KEY"],
        max_model_len=int(options.max_model_len),
        max_lora_rank=int(options.max_lora_rank),
        updates_adapters=os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1",
    )
    StandIn(behaviour, options.host, int(options.port)).serve_forever()


if __name__ == "__main__":
    main()
