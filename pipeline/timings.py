"""Where the time of a run goes beside its stages' own work, for `timings` in `run.json`. Standard library only."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Part = Literal[
    "server_start", "server_stop", "prefect_import", "prefect_flow", "prefect_drain", "stages",
    "wandb_start", "wandb_messages", "wandb_close", "hashing", "storing", "report",
]  # fmt: skip
"""`prefect_flow` encloses `stages`, and that `hashing`, `storing` and `wandb_messages`; the others enclose nothing."""


class Timings:
    """Seconds by part. One thread at a time measures a part."""

    def __init__(self) -> None:
        """Begin now."""
        self._began = time.time()
        self._seconds: dict[Part, float] = {}

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Add the enclosed time to a part, also where it ends by an exception."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start

    def to_json(self) -> dict[str, Any]:
        """As `run.json` has it: `began` and `ended` in seconds since 1970, and the seconds of each part."""
        seconds = {part: round(value, 4) for part, value in self._seconds.items()}
        return {"began": round(self._began, 4), "ended": round(time.time(), 4), "seconds": seconds}
