"""Where the records come from. Imports pydantic only."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from data.augmentation.config import StepConfig
from data.quality.config import ChecksConfig
from data.schema import KINDS, Kind
from data.strict import Contradiction, Flag, Printable, Section, StrictModel, Text, differs

RecordFormat = Literal[
    "auto",
    "instruction",
    "prompt_response",
    "text",
    "messages",
    "sharegpt",
    "preference",
    "hh",
    "ranking",
    "labeled",
    "prompt",
]

FORMATS_BY_KIND: dict[Kind, tuple[RecordFormat, ...]] = {
    "demonstrations": (
        "instruction",
        "prompt_response",
        "messages",
        "sharegpt",
        "preference",
        "hh",
        "ranking",
        "labeled",
        "text",
    ),
    "preferences": ("preference", "hh", "sharegpt", "ranking", "labeled"),
    "prompts": (
        "prompt",
        "messages",
        "sharegpt",
        "instruction",
        "preference",
        "hh",
        "prompt_response",
        "ranking",
        "labeled",
    ),
}
"""Formats whose rows hold what is wanted."""

_MIX_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class RowsConfig(Section):
    """Rows: of a file, folder or glob on this machine, or of a data set of the hub."""

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

    streaming: Flag = False
    """Read the rows of the hub data set as they come, without storing the set on this machine first: for one that is
    larger than its disk, with `limit`."""

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
            yield self._one_place()
        if self.path is not None and not self.path.strip():
            yield Contradiction(("path",), "`path` is empty; name a file, folder or glob (`.` is the working folder)")
        if self.hub is not None and not _HUB_ID.fullmatch(self.hub):
            yield Contradiction(
                ("hub",), f"`hub: {self.hub}` is no id like `owner/name`; set `path` for files on this machine"
            )
        if self.path is not None and self.hub is None:
            for name in ("config", "split", "revision", "streaming"):
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

    def _one_place(self) -> Contradiction:
        return Contradiction(
            ("path", "hub"), "give exactly one of `path` (file, folder or glob) and `hub` (data set id)"
        )


class MixedConfig(RowsConfig):
    """One of several sources of a kind."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Its part of the training rows, relative to the weights of the others. As many rows are used as the weights
    allow without repeating any; which ones, a hash of the prompt says. Held-out rows are not thinned out. Without
    weights all rows of all sources are used."""


class SourceConfig(RowsConfig):
    """One source of rows, or several that are mixed."""

    mix: dict[Text, MixedConfig] = Field(default_factory=dict)
    """Several sources by name, in place of `path` and `hub`. Each record keeps the name. What two of them hold is
    taken from the first by name."""

    @property
    def parts(self) -> dict[str, RowsConfig]:
        """What is read: the source itself, under no name, or those of the mix in the order of their names."""
        return {name: self.mix[name] for name in sorted(self.mix)} if self.mix else {"": self}

    @property
    def holds_out(self) -> bool:
        """Whether some of the rows are held out."""
        return any(part.held_out > 0 for part in self.parts.values())

    def contradictions(self) -> Iterator[Contradiction]:
        """One place or a mix, and its weights."""
        if not self.mix:
            yield from super().contradictions()
            return
        for name in RowsConfig.model_fields:
            if differs(self, name):
                yield Contradiction(
                    (name, "mix"),
                    f"{name}={getattr(self, name)} is set beside `mix`, whose sources have settings of their own; set "
                    f"`{name}` inside each of {', '.join(f'`mix.{each}`' for each in sorted(self.mix))}",
                )
        for name in self.mix:
            if not _MIX_NAME.fullmatch(name):
                yield Contradiction(
                    ("mix",),
                    f"mix names a source {name!r}; letters, digits, `_` and `-` are needed, since the name stands in "
                    f"records and figures; rename it",
                )
        without = [name for name in sorted(self.mix) if self.mix[name].weight is None]
        if without and len(without) < len(self.mix):
            yield Contradiction(
                ("mix",),
                f"mix gives no weight to {', '.join(without)}, and others have one; weights are needed for all or for "
                f"none; set `mix.{without[0]}.weight`",
            )

    def _one_place(self) -> Contradiction:
        return Contradiction(
            ("path", "hub", "mix"),
            "give exactly one of `path` (file, folder or glob), `hub` (data set id) and `mix` (several of them)",
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

    mask_personal_data: Flag = False
    """Put `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]`, `[ID_NUMBER]` and `[IP_ADDRESS]` in the place of what looks like
    one, in prompts and responses, before anything else is done with them."""

    checks: ChecksConfig = ChecksConfig()
    """What is looked for in the records, and what stops the run."""

    augmentation: list[StepConfig] = Field(default_factory=list)
    """Reworded copies of training records, a step each. All steps begin with the records that the sources hold."""


def source_parts(config: DataConfig) -> Iterator[tuple[Kind, str, RowsConfig]]:
    """All that is read: its kind, where it stands in the configuration, and how it is read."""
    for kind in KINDS:
        source: SourceConfig | None = getattr(config, kind)
        if source is not None:
            for name, part in source.parts.items():
                yield kind, part_key(f"data.{kind}", name), part


def part_key(key: str, name: str) -> str:
    """Where a part of a source stands in the configuration: `data.preferences`, or `data.preferences.mix.NAME`."""
    return f"{key}.mix.{name}" if name else key


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
