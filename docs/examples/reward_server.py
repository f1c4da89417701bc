"""A reward server in the standard library: scores a response by the share of its words that the prompt has not.

    REWARD_TOKEN=secret python docs/examples/reward_server.py --port 8080

    POST /score   {"prompts": [...], "responses": [...]}   ->   {"scores": [...]}
    GET  /health                                           ->   {"status": "ok"}

Put a model in the place of `scores`. With REWARD_TOKEN set, requests to /score need it as a bearer token. The schema
is in docs/rewards.md.
"""

import argparse
import hmac
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST_BYTES = 64 << 20


def scores(prompts: list[str], responses: list[str]) -> list[float]:
    """One number for each response, higher is better."""
    return [_share_of_new_words(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def _share_of_new_words(prompt: str, response: str) -> float:
    known, words = set(prompt.lower().split()), response.lower().split()
    return sum(word not in known for word in words) / len(words) if words else 0.0


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Say that the server is well."""
        if self.path == "/health":
            self._answer(200, {"status": "ok"})
        else:
            self._answer(404, {"error": "ask GET /health or POST /score"})

    def do_POST(self) -> None:
        """Score a batch."""
        length = int(self.headers.get("Content-Length") or 0)
        if length > MOST_BYTES:
            self.close_connection = True
            self._answer(413, {"error": f"at most {MOST_BYTES} bytes; set batch_size"})
            return
        body = self.rfile.read(length)
        if self.path != "/score":
            self._answer(404, {"error": "ask POST /score"})
        elif not self._is_allowed():
            self._answer(401, {"error": "a bearer token is needed"})
        else:
            self._score(body)

    def _is_allowed(self) -> bool:
        token = os.environ.get("REWARD_TOKEN")
        given = self.headers.get("Authorization") or ""
        return token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    def _score(self, body: bytes) -> None:
        try:
            request = json.loads(body)
            prompts, responses = list(request["prompts"]), list(request["responses"])
            if len(prompts) != len(responses) or not all(isinstance(text, str) for text in prompts + responses):
                raise ValueError("two lists of texts of one length are needed")
        except (ValueError, KeyError, TypeError) as error:
            self._answer(422, {"error": str(error)})
            return
        self._answer(200, {"scores": scores(prompts, responses)})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    options = parser.parse_args()
    with ThreadingHTTPServer((options.host, options.port), Handler) as server:
        print(f"http://{options.host}:{server.server_address[1]}/score", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
