"""One case of bad data: the files, the `data` section, who finds it, and the three parts of what is said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.bad_inputs.data_files import Rows, lines

Files = Mapping[str, bytes | Rows] | Callable[[Path], None]


@dataclass(frozen=True)
class DataCase:
    """A case.

    Attributes:
        name: Of the test.
        files: Content by path, or a function that builds them in a folder.
        data: The `data` section.
        found: What the message says was found, and where.
        needed: What it says is needed.
        remedy: What it says to do.
        sections: Other sections of the configuration.
        by: What finds it first: `validate`, or the `data` stage where all rows have to be read.
    """

    name: str
    files: Files
    data: Mapping[str, Any]
    found: str
    needed: str
    remedy: str
    by: Literal["validate", "stage"] = "validate"
    sections: Mapping[str, Any] = field(default_factory=dict)

    def build(self, folder: Path) -> None:
        """Write the files."""
        if callable(self.files):
            self.files(folder)
            return
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else lines(content))


def preferences(
    name: str, files: Files, found: str, needed: str, remedy: str, *, path: str = "p.jsonl", **source: Any
) -> DataCase:
    """A case of one source of preferences."""
    return DataCase(name, files, {"preferences": {"path": path, **source}}, found, needed, remedy)


def demonstrations(
    name: str, files: Files, found: str, needed: str, remedy: str, *, path: str = "d.jsonl", **source: Any
) -> DataCase:
    """A case of one source of demonstrations."""
    return DataCase(name, files, {"demonstrations": {"path": path, **source}}, found, needed, remedy)


def prompts(
    name: str, files: Files, found: str, needed: str, remedy: str, *, path: str = "q.jsonl", **source: Any
) -> DataCase:
    """A case of one source of prompts."""
    shipped = {"path": "samples:demonstrations"}  # a configuration without any is refused before
    return DataCase(
        name, files, {"prompts": {"path": path, **source}, "demonstrations": shipped}, found, needed, remedy
    )
