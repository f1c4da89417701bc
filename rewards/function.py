"""A user's Python function as a reward function.

It runs in a thread with a time limit: unlike an alarm signal, that works in any thread (an inline stage runs in one of
Prefect's) and while the function is inside native code. What hangs cannot be ended from outside, so the thread is left
to itself; it does not hold up the end of the process.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.errors import ConfigError, StageError
from rewards.checking import checked_scores, shown_prompt
from rewards.composite_config import PythonRewardConfig
from rewards.contract import Episode

_MAX_MESSAGE = 500

UserFunction = Callable[..., Any]

_REFERENCES = "references"
"""A parameter of this name gets the references of the prompts."""


class PythonReward:
    """Judges by a function of prompts and responses, whatever that may do."""

    def __init__(self, config: PythonRewardConfig, config_dir: Path | None) -> None:
        """Load the function.

        Raises:
            ConfigError: It cannot be loaded.
        """
        self._name, self._setting = config.source, config.setting
        self._timeout_seconds = config.timeout_seconds
        self._function = load_function(config, config_dir)
        self._takes_references = _REFERENCES in _parameters(self._function)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One score an episode.

        Raises:
            StageError: The function raises, takes too long, or gives something else than one finite number each.
        """
        deadline = time.monotonic() + self._timeout_seconds
        try:
            found = self._within(episodes, deadline)
        except _RaisedError as error:
            raise self._failure(error, episodes, deadline + self._timeout_seconds) from error.__cause__
        remedy = f"correct {self._name} (`source`)"
        return checked_scores(found, episodes, source=f"{self._setting}: {self._name}", remedy=remedy)

    def _within(self, episodes: Sequence[Episode], deadline: float) -> Any:
        """Call the function in a thread and wait for it until the deadline."""
        prompts = [episode.prompt_text for episode in episodes]
        responses = [episode.response_text for episode in episodes]
        others = {_REFERENCES: [each.reference for each in episodes]} if self._takes_references else {}
        results: list[Any] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                results.append(self._function(prompts, responses, **others))
            except BaseException as error:  # sys.exit() and all: the user's code must end neither thread nor stage
                errors.append(error)

        thread = threading.Thread(target=call, name="reward-function", daemon=True)
        thread.start()
        thread.join(max(deadline - time.monotonic(), 0.0))
        if thread.is_alive():
            raise StageError(
                f"{self._setting}: {self._name} did not come back within {self._timeout_seconds:g} s for "
                f"{len(episodes)} responses; a function that ends is needed: look for what it waits for, or raise "
                f"`timeout_seconds`"
            )
        if errors:
            raise _RaisedError from errors[0]
        return results[0]

    def _failure(self, error: "_RaisedError", episodes: Sequence[Episode], deadline: float) -> StageError:
        """What the function raised, and at which prompt: it is asked again with one episode after the other."""
        cause = error.__cause__
        what = f"{type(cause).__name__}: {cause}"[:_MAX_MESSAGE]
        return StageError(
            f"{self._setting}: {self._name} raised {what}{_line_of(cause)}, {self._offender(episodes, deadline)}; one "
            f"number for each response is needed: correct the function (`source`)"
        )

    def _offender(self, episodes: Sequence[Episode], deadline: float) -> str:
        for episode in episodes:
            try:
                self._within([episode], deadline)
            except _RaisedError:
                return f"first at the prompt {shown_prompt(episode)}"
            except StageError:
                break
        return f"at no single one of {len(episodes)} prompts"


class _RaisedError(Exception):
    """The function raised; the cause is what."""


def load_function(config: PythonRewardConfig, config_dir: Path | None) -> UserFunction:
    """Import the function.

    Args:
        config: Names it: `path/to/file.py:name` or `package.module:name`.
        config_dir: Folder of the configuration file; relative paths are looked up there, then in the working
            directory.

    Raises:
        ConfigError: File, module or function are missing, or the import fails.
    """
    name, where = config.source, _where(config)
    path, attribute = function_file(config, config_dir), name.rpartition(":")[2]
    try:
        module = _import_file(path) if _is_path(name) else importlib.import_module(name.rpartition(":")[0])
    except BaseException as error:  # whatever the user's file does when it is imported, sys.exit() included
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(
            f"{where}: importing {path} raised {type(error).__name__}: {error}{_line_of(error)}; "
            f"a file that can be imported is needed: correct it, or install what it imports"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigError(
            f"{where}: {path} has no function {attribute!r}; `def {attribute}(prompts, "
            f"responses)` with one number for each response as its result is needed: correct the name"
        )
    function: UserFunction = found
    return function


def function_file(config: PythonRewardConfig, config_dir: Path | None) -> Path:
    """The file that holds the function, without importing it.

    Raises:
        ConfigError: There is none.
    """
    name, where = config.source, _where(config)
    source = name.rpartition(":")[0]
    if _is_path(name):
        given = Path(source).expanduser()
        candidates = [given] if given.is_absolute() else [folder / given for folder in (config_dir, Path()) if folder]
        for path in candidates:
            if path.is_file():
                return path.resolve()
        raise ConfigError(
            f"{where}: no file at {' or '.join(dict.fromkeys(map(str, candidates)))}; a Python file beside the "
            f"configuration file or in the working directory is needed: correct the path"
        )
    try:
        spec = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(
            f"{where}: there is no module {source!r} in this environment; install it, or name a "
            f"file: path/to/file.py:{name.rpartition(':')[2]}"
        )
    return Path(spec.origin)


def function_digest(config: PythonRewardConfig, config_dir: Path | None) -> str:
    """SHA-256 of the file that holds the function, for the fingerprint of a stage."""
    return hashlib.sha256(function_file(config, config_dir).read_bytes()).hexdigest()


def _where(config: PythonRewardConfig) -> str:
    return f"{config.setting}.source={config.source!r}"


def _parameters(function: UserFunction) -> Sequence[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # native code may not say
        return []


def _is_path(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py")


def _import_file(path: Path) -> Any:
    module_name = f"_rlhf_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    spec.loader.exec_module(module)
    return module


def _line_of(error: BaseException | None) -> str:
    """Where it was raised, ` (file:line)`; the user's own line is the innermost one of most errors."""
    trace = None if error is None else error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
