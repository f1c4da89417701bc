"""A language model behind an address, in the form of OpenAI's chat completions.

Answers are kept on disk as they come, under a hash of all that shaped them: what was asked once is not asked, nor paid,
again by a stage that was killed.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.asking import MAX_MESSAGE, Server, ServerSettings
from data.endpoint_config import ChatEndpointConfig
from data.errors import StageError
from data.schema import Message

Conversation = Sequence[Message]


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: Its answer.
        prompt_tokens: As the endpoint counts them; 0 where it does not say.
        completion_tokens: As the endpoint counts them.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Usage:
    """What asking has cost in this process.

    Attributes:
        requests: Sent and answered.
        cached: Answers that were there already.
        prompt_tokens: Of the requests that were sent.
        completion_tokens: Of the answers to them.
        cost: Of both, by the configured prices.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, answer: Answer, config: ChatEndpointConfig) -> None:
        """Count an answer that was asked for."""
        with self._lock:
            self.requests += 1
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens
            self.cost += 1e-6 * (
                answer.prompt_tokens * config.price_per_million_prompt_tokens
                + answer.completion_tokens * config.price_per_million_completion_tokens
            )

    def count_cached(self) -> None:
        """Count an answer that was there."""
        with self._lock:
            self.cached += 1


class ChatEndpoint:
    """Asks the model."""

    def __init__(self, config: ChatEndpointConfig, cache: Path, *, setting: str) -> None:
        """Prepare; nothing is sent.

        Args:
            config: Which model, where, and how patiently.
            cache: File of the answers; made where it is not there.
            setting: The section's key in the configuration, for messages.

        Raises:
            ConfigError: The token's environment variable is not set.
            StageError: The cache is damaged.
        """
        self._config, self._setting = config, setting
        self._address = f"{config.address}/chat/completions"
        self._server = Server(
            ServerSettings(
                setting=setting,
                kind="chat endpoint",
                answer="one chat completion",
                address=config.address,
                token_env=config.token_env,
                timeout_seconds=config.timeout_seconds,
                max_retries=config.max_retries,
            )
        )
        self._answers = _Answers(cache)
        self._pace = _Pace(config.requests_per_minute)
        self.usage = Usage()

    @property
    def num_retries(self) -> int:
        """Requests that had to be sent again."""
        return self._server.num_retries

    def ask_all(
        self, conversations: Sequence[Conversation], *, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[str]:
        """Ask for the answer to each conversation, several at once.

        Args:
            conversations: Turns, the last one the user's.
            progress: Told how many are answered, and of how many.

        Returns:
            The answers, in the order of the conversations.

        Raises:
            StageError: The endpoint fails for good, refuses, or answers something else than a chat completion. What
                was answered before is kept.
        """
        answers: list[str] = []
        with ThreadPoolExecutor(self._config.max_concurrency) as threads:
            try:
                for answer in threads.map(self._ask, conversations):
                    answers.append(answer)
                    progress(len(answers), len(conversations))
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        return answers

    def _ask(self, conversation: Conversation) -> str:
        body = {
            "model": self._config.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in conversation],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
        }
        key = hashlib.sha256(json.dumps([self._address, body], sort_keys=True).encode()).hexdigest()
        known = self._answers.get(key)
        if known is not None:
            self.usage.count_cached()
            return known
        self._pace.wait()
        answer = self._parsed(self._server.ask("POST", self._address, body))
        self._answers.put(key, answer.text)
        self.usage.count(answer, self._config)
        return answer.text

    def _parsed(self, content: bytes) -> Answer:
        try:
            values = json.loads(content)
            text = values["choices"][0]["message"]["content"]
            usage = values.get("usage") or {}
            prompt, completion = (usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens"))
            if not (isinstance(text, str) and _is_count(prompt) and _is_count(completion)):
                raise TypeError
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise StageError(
                f"{self._setting}: {self._address} answered {content[:MAX_MESSAGE]!r}, which is no chat completion; "
                f"{{'choices': [{{'message': {{'content': text}}}}]}} is needed: correct the address or the endpoint"
            ) from error
        # JSON can spell half a character, which neither the cache nor a file can hold.
        return Answer(text.encode("utf-8", "replace").decode("utf-8"), prompt, completion)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class _Pace:
    """Lets requests go evenly, at most so many a minute."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._seconds
        if start > now:
            time.sleep(start - now)


class _Answers:
    """Answers by the hash of the request, each stored before it is used."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        try:
            self._store = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._store.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def get(self, key: str) -> str | None:
        with self._lock:
            try:
                row = self._store.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                raise self._damaged(error) from error
        return None if row is None else str(row[0])

    def put(self, key: str, text: str) -> None:
        with self._lock:
            try:
                self._store.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))
            except sqlite3.Error as error:
                raise self._damaged(error) from error

    def _damaged(self, error: sqlite3.Error) -> StageError:
        return StageError(
            f"{self._path}: the answers kept there cannot be read or written ({error}); a file of answers, and room on "
            f"the disk, are needed; remove it to ask again"
        )
