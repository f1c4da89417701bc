"""What is said to a vLLM server, and what its refusals mean.

Knows HTTP and vLLM's API; knows no process, no file and no rank. It does not import vllm: an environment without it
can talk to a server elsewhere.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from data.errors import ConfigError, StageError
from data.retrying import backoff_seconds

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
# A vLLM server closes connections that were idle for 5 s; one that is taken up just then is lost.
_KEEP_ALIVE_SECONDS = 1.0
_RETRIES = "rlhf.retries"
_TOKEN_PREFIX = "token_id:"
_MAX_MESSAGE = 500
# Worth another try: a server that is starting or has too much to do, or a proxy before it that lost it.
_PASSING = (429, 502, 503, 504)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class NoAnswerError(StageError):
    """A server did not answer, or had an error of its own (5xx): unlike one that refuses, it may be about to end."""


@dataclass(frozen=True)
class ServedModel:
    """One entry of `/v1/models`.

    Attributes:
        name: What requests call it.
        root: Where the server read it; None where it does not say.
        parent: The base's name for an adapter; None for a base.
        max_length: Longest prompt and response in tokens; None where it does not say.
    """

    name: str
    root: str | None
    parent: str | None
    max_length: int | None


@dataclass(frozen=True)
class Completion:
    """One response, by token ids.

    Attributes:
        token_ids: The response.
        logprobs: Of each of its tokens, in nats.
        top_logprobs: At each place, the likeliest tokens and the sampled one.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[int, float], ...]


class VLLMClient:
    """A vLLM server behind an address. Safe to use from several threads."""

    def __init__(
        self,
        address: str,
        api_key: str | None,
        *,
        api_key_source: str,
        timeout_seconds: float,
        max_connections: int,
        what_to_do: Callable[[], str],
        max_retries: int = 0,
        is_worth_retrying: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            address: `http://host:port`; a `/v1` at its end is left out.
            api_key: Sent with each request; None sends none.
            api_key_source: Where the key came from, for messages.
            timeout_seconds: How long one answer may take.
            max_connections: At a time.
            what_to_do: Says what to do about a server that does not answer; the end of such messages.
            max_retries: How often a request is sent again that got no answer, or that the server was not ready for.
            is_worth_retrying: Asked before each of these; False for a server that is known to be gone.

        Raises:
            ConfigError: The address is none.
        """
        self.address = address.rstrip("/").removesuffix("/v1")
        self._api_key_source = api_key_source
        self._timeout_seconds = timeout_seconds
        self._what_to_do = what_to_do
        self._max_retries = max_retries
        self._is_worth_retrying = is_worth_retrying
        try:
            # A proxy of this machine's environment is not for this machine itself.
            is_local = urlsplit(self.address).hostname in _LOOPBACK
            self._http = httpx.Client(
                base_url=self.address,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
                limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=_KEEP_ALIVE_SECONDS),
                trust_env=not is_local,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"rollout.server.address: found {address!r}, which is no address ({error}); "
                f"write it as http://host:8000"
            ) from error

    def close(self) -> None:
        """Give up the connections."""
        self._http.close()

    def models(self) -> list[ServedModel]:
        """What is served, the bases first.

        Raises:
            ConfigError: The key is refused, or this is no vLLM server.
            StageError: Nothing answers.
        """
        response = self._request("GET", "/v1/models")
        try:
            return [
                ServedModel(str(card["id"]), card.get("root"), card.get("parent"), card.get("max_model_len"))
                for card in response.raise_for_status().json()["data"]
            ]
        except (httpx.HTTPStatusError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"rollout.server: {self.address} answered {response.status_code} to GET /v1/models with "
                f"{_message(response)!r}, which is no list of models; a vLLM server is needed there: correct "
                f"`rollout.server.address`"
            ) from error

    def load_adapter(self, name: str, folder: str, *, rank: int) -> None:
        """Load an adapter under a name that no other has.

        Args:
            name: New to the server.
            folder: As the server sees it.
            rank: Of the adapter, for messages.

        Raises:
            ConfigError: The server was started without adapters or without leave to load them.
            StageError: It refuses this one, or does not answer.
        """
        response = self._request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        # Sent again after its answer was lost, it finds the adapter in place.
        if response.is_success or ("already been loaded" in _message(response) and _was_sent_again(response)):
            return
        if _is_no_route(response):
            raise ConfigError(
                f"rollout.server: {self.address} has no /v1/load_lora_adapter, and adapters have to be loaded while it "
                f"runs; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
            )
        raise _error_of(response)(
            f"rollout.server: {self.address} refused adapter {name} in {folder}: {_message(response)}; needed are "
            f"--enable-lora, --max-lora-rank of at least {rank}, a LoRA without DoRA, and a folder that the server "
            f"reads under the same path: start it so, or set `rollout.server.adapter_dir`"
        )

    def unload_adapter(self, name: str) -> None:
        """Let the server forget an adapter.

        Raises:
            StageError: It does not know it, or does not answer.
        """
        response = self._request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if not response.is_success and not (response.status_code == 404 and _was_sent_again(response)):
            raise _error_of(response)(
                f"rollout.server: {self.address} did not unload adapter {name}: {_message(response)}; it has to stay "
                f"under this stage's control: use a server that nobody else loads adapters into"
            )

    def complete(
        self,
        model: str,
        prompt: list[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        num_logprobs: int,
        stop_token_ids: list[int],
    ) -> Completion:
        """Sample one response.

        Args:
            model: Name of a base or an adapter.
            prompt: Token ids.
            max_tokens: Longest response.
            temperature: Divides the logits.
            seed: From -2**63 to 2**63 - 1.
            num_logprobs: Likeliest tokens to tell at each place, beside the sampled one.
            stop_token_ids: End a response, as its last token.

        Raises:
            StageError: The request is refused, or no answer comes.
        """
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "logprobs": num_logprobs,
            "stop_token_ids": stop_token_ids,
            "ignore_eos": True,  # the base's own; only what is named here ends a response
            # Token ids in place of texts: two tokens may have the same text, and a text no token of its own.
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            # Said even though vLLM's own defaults: a server takes them from the model's generation_config.json.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        response = self._request("POST", "/v1/completions", body)
        if not response.is_success:
            remedy = "start it so, or change `rollout`" if response.is_client_error else self._what_to_do()
            if response.status_code == 404:  # started anew by somebody else, it does not know our adapter
                remedy = "if it was started anew, `rlhf resume` sends it the adapter again"
            raise _error_of(response)(
                f"rollout.server: {self.address} answered {response.status_code} to a prompt of {len(prompt)} tokens "
                f"for {model}: {_message(response)}; a server that samples {max_tokens} tokens at temperature "
                f"{temperature:g} with {num_logprobs} log-probabilities beside each is needed: {remedy}"
            )
        return self._completion(response)

    def _completion(self, response: httpx.Response) -> Completion:
        try:
            logprobs = response.json()["choices"][0]["logprobs"]
            completion = Completion(
                tuple(_token_id(token) for token in logprobs["tokens"]),
                tuple(float(value) for value in logprobs["token_logprobs"]),
                tuple(
                    {_token_id(token): float(value) for token, value in place.items()}
                    for place in logprobs["top_logprobs"]
                ),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._unreadable(response) from error
        if not 0 < len(completion.token_ids) == len(completion.logprobs) == len(completion.top_logprobs):
            raise self._unreadable(response)
        return completion

    def _unreadable(self, response: httpx.Response) -> StageError:
        return StageError(
            f"rollout.server: {self.address} answered /v1/completions without token ids and their log-probabilities: "
            f"{response.text[:_MAX_MESSAGE]!r}; vLLM 0.26 to 0.32 gives them: use such a server"
        )

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Send, and send again where that may help: a request that is repeated asks for the same."""
        retry = 0
        while True:
            try:
                response = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                is_late = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
                if is_late or not self._may_retry(retry):
                    raise self._failure(path, error) from error
                problem = str(error) or type(error).__name__
            else:
                if response.status_code not in _PASSING or not self._may_retry(retry):
                    response.extensions[_RETRIES] = retry
                    return self._checked(response)
                problem = f"answered {response.status_code}"
            pause = backoff_seconds(retry)
            retry += 1
            logger.warning(
                "rollout.server: %s %s: %s; sent again in %.0f s (%d of %d)",
                self.address, path, problem, pause, retry, self._max_retries,
            )  # fmt: skip
            time.sleep(pause)

    def _may_retry(self, retry: int) -> bool:
        return retry < self._max_retries and self._is_worth_retrying()

    def _failure(self, path: str, error: httpx.TransportError) -> NoAnswerError:
        """What it means that no answer came."""
        match error:
            case httpx.ConnectError() | httpx.ConnectTimeout():
                return NoAnswerError(
                    f"rollout.server: nothing answers at {self.address} ({error}); a vLLM server that runs is needed: "
                    f"{self._what_to_do()}"
                )
            case httpx.TimeoutException():
                return NoAnswerError(
                    f"rollout.server: {self.address} did not answer {path} within {self._timeout_seconds:g} s; it is "
                    f"stuck or has too much to do: raise `rollout.server.request_timeout_seconds`, or lower "
                    f"`rollout.server.max_parallel_requests`. {self._what_to_do()}"
                )
            case _:
                return NoAnswerError(
                    f"rollout.server: {self.address} broke off while it answered {path} ({error}); a server that keeps "
                    f"running is needed: {self._what_to_do()}"
                )

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code in (401, 403):
            raise ConfigError(
                f"rollout.server: {self.address} refused the API key ({response.status_code}), which came from "
                f"{self._api_key_source}; put the server's own key there (`rollout.server.api_key_env`)"
            )
        return response


def _was_sent_again(response: httpx.Response) -> bool:
    """Whether an earlier answer to the same request may have been lost."""
    retries: int = response.extensions.get(_RETRIES, 0)
    return retries > 0


def _error_of(response: httpx.Response) -> type[StageError]:
    return NoAnswerError if response.is_server_error else StageError


def _token_id(token: str) -> int:
    if not token.startswith(_TOKEN_PREFIX):
        raise ValueError(f"{token!r} is no token id")
    return int(token[len(_TOKEN_PREFIX) :])


def _is_no_route(response: httpx.Response) -> bool:
    """Whether the path is unknown: vLLM's own refusals with 404 have an `error`."""
    if response.status_code not in (404, 405):
        return False
    try:
        answer = response.json()
    except ValueError:
        return True
    return not (isinstance(answer, dict) and "error" in answer)


def _message(response: httpx.Response) -> str:
    """What the server says about its refusal."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    error = answer.get("error") if isinstance(answer, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return str(text or response.text or response.reason_phrase)[:_MAX_MESSAGE]
