"""No password in a configuration: it is stored with the run, shown by Prefect and W&B, and passed on with a report."""

from collections.abc import Iterator
from typing import Any

from data.errors import ConfigError
from data.redaction import holds_secret, is_secret_name
from pipeline.config import PipelineConfig
from pipeline.problems import all_keys

_WAY_OUT = (
    "a configuration is kept with the run and shown by Prefect and W&B, so it holds no password, key or token: put it "
    "into an environment variable instead (HF_TOKEN, WANDB_API_KEY, the one that `rollout.server.api_key_env` names) "
    "and leave it out here"
)

# `max_kl_per_token` is a number, whatever it sounds like; what a known key holds is looked at all the same.
_KNOWN = frozenset(key.rpartition(".")[2] for key in all_keys(PipelineConfig))


def check_no_secrets(values: Any, name: str) -> None:
    """Refuse a password in the values of a configuration, without repeating it.

    Args:
        values: As they were written, before anything else could put them into a message.
        name: Of the file.

    Raises:
        ConfigError: With one line a problem.
    """
    problems = [f"{name}: {key}: {what}; {_WAY_OUT}" for key, what in _found("", values)]
    if problems:
        raise ConfigError("\n".join(problems))


def _found(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _found(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _found(f"{key}.{index}", inner)
    elif isinstance(value, str) and holds_secret(value):
        yield key, "the value holds a password, key or token (not repeated here)"
    elif value and isinstance(value, str | int) and not isinstance(value, bool):
        name = key.rpartition(".")[2]
        if name not in _KNOWN and is_secret_name(name):
            yield key, "the name says that the value is a secret (not repeated here)"
