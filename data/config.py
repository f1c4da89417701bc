"""Where the records come from. Imports pydantic only."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from data.schema import Kind
from data.strict import Contradiction, Printable, Section, StrictModel, Text, differs

RecordFormat = Literal["auto", "instruction", "prompt_response", "text", "messages", "preference", "hh", "prompt"]

FORMATS_BY_KIND: dict[Kind, tuple[RecordFormat, ...]] = {
    "demonstrations": ("instruction", "prompt_response", "messages", "preference", "hh", "text"),
    "preferences": ("preference", "hh"),
    "prompts": ("prompt", "messages", "instruction", "preference", "hh", "prompt_response"),
}
"""Formats whose rows hold what is wanted."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class SourceConfig(Section):
    """One source of rows: a file, folder or glob on this machine, or a data set of the hub."""

    path: Printable | None = None
    """File, folder or glob. Relative paths are looked up from the working folder, then beside the
    configuration. `samples:NAME` is one of the shipped files in `data/samples`."""

    hub: str | None = None
    """Id of a data set on the Hugging Face hub, e.g. `Anthropic/hh-rlhf`."""

    config: Text | None = None
    """Configuration (or `data_dir`) of the hub data set."""

    split: Text = "train"
    """Split of the hub data set."""

    revision: Text | None = None
    """Commit of the hub data set. Name one: without it the stage cache cannot see that the data changed."""

    format: RecordFormat = "auto"
    """How a row is read. `auto` recognises the format from the columns."""

    columns: dict[Text, Text] = Field(default_factory=dict)
    """Renames columns before the format is applied: `{prompt: question}` reads the prompt from `question`."""

    limit: int | None = Field(default=None, ge=1)
    """Use at most this many rows, the first ones."""

    held_out: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the records held out for validation and evaluation, chosen by a hash of the prompt."""

    def contradictions(self) -> Iterator[Contradiction]:
        """One place, and what belongs to it."""
        if (self.path is None) == (self.hub is None):
            yield Contradiction(
                ("path", "hub"), "give exactly one of `path` (file, folder or glob) and `hub` (data set id)"
            )
        if self.path is not None and not self.path.strip():
            yield Contradiction(("path",), "`path` is empty; name a file, folder or glob (`.` is the working folder)")
        if self.hub is not None and not _HUB_ID.fullmatch(self.hub):
            yield Contradiction(
                ("hub",), f"`hub: {self.hub}` is no id like `owner/name`; set `path` for files on this machine"
            )
        if self.path is not None and self.hub is None:
            for name in ("config", "split", "revision"):
                if differs(self, name):
                    yield Contradiction(
                        (name, "path", "hub"),
                        f"{name}={getattr(self, name)} is set beside `path`, but only data sets of the hub have a "
                        f"{name}; remove it, or name the data set by `hub`",
                    )
        for present in sorted({each for each in self.columns.values() if list(self.columns.values()).count(each) > 1}):
            names = [name for name, each in self.columns.items() if each == present]
            yield Contradiction(
                ("columns",),
                f"columns reads {' and '.join(f'`{name}`' for name in names)} from the one column `{present}`; each "
                f"needs a column of its own; correct `columns`",
            )


class DataConfig(StrictModel):
    """The three sources. A missing one is derived from another, or made by the `preferences` stage."""

    demonstrations: SourceConfig | None = None
    """Prompt and response pairs for SFT. Missing: the chosen responses of `preferences`."""

    preferences: SourceConfig | None = None
    """Prompt, chosen and rejected response for the reward model. Missing: made by the `preferences` stage."""

    prompts: SourceConfig | None = None
    """Prompts for PPO and evaluation. Missing: those of `preferences`, else of `demonstrations`."""

    max_skipped_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Largest share of a source's rows that may be skipped (empty, repeated, contradicting ...; each stands with its
    reason in `quarantine.jsonl`). More stops the run; 0 stops it at the first, 1 never."""


def wrong_format(name: str, record_format: str, kind: Kind) -> str:
    """What is said of a source of this name whose format does not give this kind."""
    return (
        f"{name}: rows of format `{record_format}` hold no {kind}; one of {', '.join(FORMATS_BY_KIND[kind])} is "
        f"needed; change `{name}.format`, or rename columns with `{name}.columns`"
    )


def absolute_path(path: str, config_dir: Path | None) -> Path:
    """Resolve a data or model path as the configuration means it, without touching the target.

    A relative path is looked up from the working folder first, then beside the configuration file.
    """
    candidate = Path(path).expanduser()
    if candidate.is_absolute() or config_dir is None or candidate.exists():
        return candidate
    beside = config_dir / candidate
    return beside if beside.exists() else candidate
