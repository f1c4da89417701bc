"""One case of a configuration at fault: the `--set` options on one that is right, and the whole message."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        name: Of the test.
        options: `KEY=VALUE`, on the configuration of `test_config`.
        message: All that is said.
    """

    name: str
    options: tuple[str, ...]
    message: str
