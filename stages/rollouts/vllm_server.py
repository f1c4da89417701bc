"""A vLLM server as a backend for adapters that are sent anew after each update.

With several ranks all of them sample from one server; the main rank alone starts it, loads adapters into it, and
probes it.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from data.errors import ConfigError, StageError, UserError
from stages.models.config import ModelConfig
from stages.ranks import Ranks
from stages.rollouts.adapter_files import folder_digest
from stages.rollouts.config import SamplingConfig, VLLMConfig, VLLMServerConfig
from stages.rollouts.contract import EngineDiedError, LoadedAdapter, PublishedAdapter, Rollout
from stages.rollouts.vllm_client import Completion, NoAnswerError, VLLMClient
from stages.rollouts.vllm_limits import MAX_LOGPROBS
from stages.rollouts.vllm_process import VLLMProcess, server_arguments

logger = logging.getLogger(__name__)

_MODE_TEMPERATURES = (0.5, 1.0)
# Log-probabilities of one prompt twice: float32 or bf16 noise is below, a temperature's effect above.
_SAME_NATS = 1e-3


class VLLMServerBackend:
    """A vLLM server, of the stage's own or given by its address, with one adapter in use."""

    def __init__(
        self,
        config: VLLMServerConfig,
        engine: VLLMConfig,
        model: ModelConfig,
        *,
        served: Path | str,
        eos_token_id: int,
        max_length: int,
        seed: int,
        log_path: Path,
        ranks: Ranks,
    ) -> None:
        """Start a server or find the one that was named; no adapter is loaded yet.

        Args:
            config: Where the server is, and limits of time.
            engine: Memory and speed of a server that is started here.
            model: The model section.
            served: Folder or hub id of the base's weights, for a server that is started here.
            eos_token_id: Ends a response.
            max_length: Longest prompt and response, in tokens.
            seed: Seed of a server that is started here.
            log_path: Log of a server that is started here.
            ranks: Processes of this stage.

        Raises:
            ConfigError: The server is not one that can be used so.
            StageError: None answers.
        """
        self._rank = model.tuning.rank
        self._eos_token_id = eos_token_id
        self._max_parallel_requests = config.max_parallel_requests
        self._ranks = ranks
        self._loaded: list[str] = []
        self._is_checked = False
        self._is_own = config.address is None
        self._log_path = log_path
        self._server = config
        self._max_length = max_length
        self._start_own = partial(self._start, config, engine, model, served, max_length, seed)
        self._num_started = 0
        self._is_in_use = False
        self._process: VLLMProcess | None = None
        self._client: VLLMClient | None = None
        self.api_key = os.environ.get(config.api_key_env)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._connected.address

    @property
    def process(self) -> VLLMProcess | None:
        """The server, where this process started it."""
        return self._process

    def load_adapter(self, adapter: PublishedAdapter) -> LoadedAdapter:
        """Load a version under its own name and see that the server lists it."""
        with self._death_told():
            if self._ranks.is_main:
                self._connected.load_adapter(adapter.name, str(adapter.folder), rank=self._rank)
                self._loaded.append(adapter.name)
            self._ranks.barrier()
            models = self._connected.models()
        for served in models:
            if served.name == adapter.name and served.root is not None:
                self._model = adapter.name
                return LoadedAdapter(served.name, served.root, folder_digest(Path(served.root)))
        raise StageError(
            f"rollout.server: {self.address} said that it loaded adapter {adapter.name} and does not list it; one "
            f"server process has to answer all requests: start it with --api-server-count 1 and without replicas"
        )

    def unload_adapter(self, adapter: PublishedAdapter) -> None:
        """Let the server forget a version."""
        if self._ranks.is_main:
            with self._death_told():
                self._connected.unload_adapter(adapter.name)
            self._loaded.remove(adapter.name)

    def sample(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]) -> list[Rollout]:
        """Sample one response for each prompt, each by a request of its own.

        Raises:
            ConfigError: The server reports log-probabilities of another distribution than it samples from.
            EngineDiedError: The server was of the stage's own, and has ended.
            StageError: A request failed.
        """
        rollouts: list[Rollout] = []
        error: StageError | None = None
        try:
            rollouts = self._sample(prompts, sampling, seeds)
        except StageError as caught:
            error = caught
        # With several ranks, whoever met the server alive has to start over with those who did not.
        had_no_answer = isinstance(error, NoAnswerError)
        if self._is_own and any(self._ranks.gather([had_no_answer])) and self._ranks.broadcast(self._has_died()):
            raise self._death() from error
        if error is not None:
            raise error
        return rollouts

    def _sample(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Rollout]:
        if sampling.temperature != 1.0 and not self._is_checked and prompts:
            self._check_logprobs_mode(prompts[0])
        pool = ThreadPoolExecutor(max_workers=self._max_parallel_requests, thread_name_prefix="vllm-request")
        try:
            futures = [
                pool.submit(self._rollout, prompt, sampling, seed) for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            return [future.result() for future in futures]
        finally:
            # After an error nobody waits for the others: those under way end with the server or at their time limit.
            pool.shutdown(wait=False, cancel_futures=True)

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """The likeliest next tokens of each prompt, by generating one.

        One prompt after another: what shares a batch shows in the last digits, and the proof of a sync asks
        whether two answers are equal bit for bit.
        """
        rows: list[list[tuple[int, float]]] = []
        if self._ranks.is_main:
            with self._death_told():
                rows = [list(self._next_token(prompt, temperature=1.0).items()) for prompt in prompts]
        return [{int(token): float(value) for token, value in row} for row in self._ranks.broadcast(rows)]

    def close(self) -> None:
        """End a server that was started here; leave another one without our adapters."""
        self._is_in_use = False
        client, self._client = self._client, None
        process, self._process = self._process, None
        if client is not None:
            if not self._is_own:
                self._forget_adapters(client)
            client.close()
        if process is not None:
            process.close()

    def _connect(self) -> None:
        """Start a server where none is given, and find its base."""
        address, config = self._server.address, self._server
        if address is None:
            address, self.api_key = self._start_own()
        self._client = VLLMClient(
            address,
            self.api_key,
            api_key_source=f"the environment variable {config.api_key_env}"
            + ("" if self.api_key else ", which is not set"),
            timeout_seconds=config.request_timeout_seconds,
            max_connections=config.max_parallel_requests,
            what_to_do=self._what_to_do,
            max_retries=config.max_retries,
            is_worth_retrying=self._is_worth_retrying,
        )
        self._model = self._base(self._max_length)
        self._is_in_use = True

    def _restart(self) -> None:
        """A new server in place of one of the stage's own that has died."""
        self.close()
        self._loaded.clear()
        self._connect()

    def _is_worth_retrying(self) -> bool:
        """A server that is given may come back; one that never answered, or our own that has ended, will not."""
        if not self._is_own:
            return self._is_in_use
        return self._process is not None and self._process.is_running()

    def _has_died(self) -> bool:
        """Whether a server that this process started has ended, or is about to: its engine's death ends it."""
        return self._process is not None and not self._process.stays_up()

    def _death(self) -> EngineDiedError:
        """How the server is, in place of what a dying one answered."""
        return EngineDiedError(f"rollout.server: {self.address} has died: {self._what_to_do()}", self._restart)

    @contextmanager
    def _death_told(self) -> Iterator[None]:
        """On one rank: tell a failed request from a server that is gone. Several wait for one another here."""
        try:
            yield
        except NoAnswerError as error:
            if self._ranks.size == 1 and self._has_died():
                raise self._death() from error
            raise

    @property
    def _connected(self) -> VLLMClient:
        if self._client is None:
            raise ValueError("the backend is closed")
        return self._client

    def _start(
        self,
        config: VLLMServerConfig,
        engine: VLLMConfig,
        model: ModelConfig,
        served: Path | str,
        max_length: int,
        seed: int,
    ) -> tuple[str, str]:
        reached = ["", ""]
        self._num_started += 1
        if self._num_started > 1:  # the log of the one that died stays
            self._log_path = self._log_path.with_name(f"vllm-{self._num_started}.log")
        if self._ranks.is_main:
            arguments = server_arguments(engine, model, served=served, max_length=max_length, seed=seed)
            self._process = VLLMProcess(arguments, kv_cache_gib=engine.kv_cache_gib, log_path=self._log_path)
            self._process.wait_until_ready(config.startup_timeout_seconds)
            reached = [self._process.address, self._process.api_key]
        address, key = self._ranks.broadcast(reached)
        return address, key

    def _base(self, max_length: int) -> str:
        """Name of the served base, long enough for what is sampled."""
        bases = [served for served in self._connected.models() if served.parent is None]
        if not bases:
            raise ConfigError(
                f"rollout.server: {self.address} serves no base model; a vLLM server with the base of `model.base` is "
                f"needed: correct `rollout.server.address`"
            )
        length = bases[0].max_length
        if length is not None and length < max_length:
            raise ConfigError(
                f"rollout.server: {self.address} serves at most {length} tokens, prompts and responses have up to "
                f"{max_length}; start it with --max-model-len {max_length}, or lower `max_prompt_tokens` or "
                f"`rollout.max_new_tokens`"
            )
        return bases[0].name

    def _check_logprobs_mode(self, prompt: Sequence[int]) -> None:
        first, second = (self._next_token(prompt, temperature=temperature) for temperature in _MODE_TEMPERATURES)
        if max(abs(first[token] - second[token]) for token in first.keys() & second.keys()) < _SAME_NATS:
            raise ConfigError(
                f"rollout.server: {self.address} gives the same log-probabilities at temperatures "
                f"{_MODE_TEMPERATURES[0]} and {_MODE_TEMPERATURES[1]}, so they are not those of what it samples; "
                f"start it with --logprobs-mode processed_logprobs, or use `rollout.temperature: 1.0`"
            )
        self._is_checked = True

    def _next_token(self, prompt: Sequence[int], *, temperature: float) -> dict[int, float]:
        completion = self._complete(prompt, 1, temperature, seed=0, num_logprobs=MAX_LOGPROBS, stop_token_ids=[])
        return completion.top_logprobs[0]

    def _rollout(self, prompt: Sequence[int], sampling: SamplingConfig, seed: int) -> Rollout:
        completion = self._complete(
            prompt, sampling.max_new_tokens, sampling.temperature, seed, 0, stop_token_ids=[self._eos_token_id]
        )
        ids = completion.token_ids
        return Rollout(tuple(prompt), ids, completion.logprobs, finished=ids[-1] == self._eos_token_id)

    def _complete(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        temperature: float,
        seed: int,
        num_logprobs: int,
        stop_token_ids: list[int],
    ) -> Completion:
        return self._connected.complete(
            self._model,
            list(prompt),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            num_logprobs=num_logprobs,
            stop_token_ids=stop_token_ids,
        )

    def _forget_adapters(self, client: VLLMClient) -> None:
        for name in self._loaded:
            try:
                client.unload_adapter(name)
            except (StageError, UserError) as error:  # it may be gone, and with it the adapter
                logger.warning("%s", error)

    def _what_to_do(self) -> str:
        if self._process is not None:
            return self._process.what_to_do()
        if self._is_own:
            return f"the main rank started it; see its log {self._log_path}"
        return (
            "start it with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --logprobs-mode "
            "processed_logprobs`, or correct `rollout.server.address`"
        )
