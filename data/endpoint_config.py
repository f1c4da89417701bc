"""A chat endpoint in the form of OpenAI's. Imports pydantic only."""

import re

from pydantic import Field, field_validator

from data.strict import EnvironmentName, Printable, StrictModel, Text

PATIENCE = (
    "token_env",
    "timeout_seconds",
    "max_retries",
    "requests_per_minute",
    "max_concurrency",
    "price_per_million_prompt_tokens",
    "price_per_million_completion_tokens",
)
"""Settings that say nothing of what is answered."""

_ADDRESS = re.compile(r"https?://[^/@?#\s]+(/[^@?#\s]*)?")


class ChatEndpointConfig(StrictModel):
    """Where a language model answers: `POST <address>/chat/completions`."""

    address: Printable
    """Up to the version, say `http://127.0.0.1:8000/v1` of `vllm serve`. Nothing is sent before the stage runs."""

    model: Text
    """Name of the model, as the endpoint knows it."""

    token_env: EnvironmentName | None = None
    """Environment variable that holds a bearer token. The token itself never enters a configuration."""

    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """0 asks for the same answer each time, as far as the endpoint can give it."""

    max_tokens: int = Field(default=512, ge=1)
    """Of an answer."""

    timeout_seconds: float = Field(default=120.0, gt=0)
    """How long one answer may take, from the first byte sent to the last one read."""

    max_retries: int = Field(default=6, ge=0)
    """How often a request that failed is sent again: after 1, 2, 4, 8, 16 seconds and then each 30, or as the endpoint
    says by `Retry-After`."""

    requests_per_minute: float | None = Field(default=None, gt=0)
    """Requests are sent no faster than that, evenly. Default: no limit but the number of those at once."""

    max_concurrency: int = Field(default=4, ge=1, le=256)
    """Requests on their way at once."""

    price_per_million_prompt_tokens: float = Field(default=0.0, ge=0.0)
    """In whatever currency; the cost is reported in the same."""

    price_per_million_completion_tokens: float = Field(default=0.0, ge=0.0)
    """In the same currency."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str) -> str:
        if not _ADDRESS.fullmatch(address):
            raise ValueError(
                f"found {address!r}, must be an address without a key in it; write it as http://host:8000/v1"
            )
        return address.rstrip("/")
