"""The records of the pipeline, their JSON lines, and the hash that splits them.

A record says nothing of tokens, models or files: it is text, or messages of text. Imports pydantic only.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, overload

from pydantic import Field, ValidationError

from data.errors import DataError
from data.strict import StrictModel

Role = Literal["system", "user", "assistant", "tool"]
Kind = Literal["demonstrations", "preferences", "prompts"]
Split = Literal["train", "held_out"]
KINDS: tuple[Kind, ...] = ("demonstrations", "preferences", "prompts")
SPLITS: tuple[Split, ...] = ("train", "held_out")

_HASH_RANGE = 1 << 256


class Message(StrictModel):
    """One turn of a conversation."""

    role: Role
    content: str


Prompt = str | Annotated[tuple[Message, ...], Field(min_length=1)]
"""Plain text that a response continues, or the turns of a conversation that it answers."""


class _Record(StrictModel):
    prompt: Prompt

    source: str | None = None
    """Name of the source that the record comes from, where several are mixed; None where there is one."""

    augmentation: str | None = None
    """How the record was made of another one by rewording its prompt; None where it is as the source holds it."""

    def to_json(self) -> str:
        """One JSON line without its newline: sorted keys, no escapes but JSON's own, no absent fields."""
        return json.dumps(self.model_dump(exclude_none=True), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read a JSON line back; the inverse of `to_json`.

        Raises:
            ValueError: The line is no such record (pydantic's `ValidationError` is a `ValueError`).
        """
        return cls.model_validate_json(line)


class Demonstration(_Record):
    """A prompt and the response to imitate."""

    response: str


class PreferencePair(_Record):
    """A prompt, the preferred response and the other one."""

    chosen: str
    rejected: str
    margin: float | None = Field(default=None, allow_inf_nan=False)
    """By how much `chosen` is better, in units of the reward model's score; None where nobody said."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How much the pair counts in the loss; None is 1. The pairs of one ranking of K responses share a weight, so that
    a prompt counts once however many pairs its ranking makes."""

    ranking: str | None = None
    """Which ranking of several responses the pair comes from; None where it is a comparison of its own."""


class PromptRecord(_Record):
    """A prompt alone, or with the answer that a response to it is compared with."""

    reference: str | None = None
    """The right answer, for rewards that check one; None where there is none."""


Record = Demonstration | PreferencePair | PromptRecord
_RECORD_TYPES: dict[Kind, type[Record]] = {
    "demonstrations": Demonstration,
    "preferences": PreferencePair,
    "prompts": PromptRecord,
}


def prompt_key(prompt: str | Sequence[Message]) -> str:
    """Identify a prompt across sources: SHA-256, in hexadecimal, of its canonical JSON.

    Unicode is NFC-normalised and white space at the ends of each text is dropped, so that the same question
    typed or stored in another way is the same prompt. Plain text counts as one user message: a question is
    the same question in an instruction file and in a preference file.

    Args:
        prompt: Text or messages.

    Returns:
        64 hexadecimal digits.
    """
    turns = [("user", prompt)] if isinstance(prompt, str) else [(turn.role, turn.content) for turn in prompt]
    canonical = [{"content": unicodedata.normalize("NFC", content).strip(), "role": role} for role, content in turns]
    text = json.dumps(canonical, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_empty_prompt(prompt: str | Sequence[Message]) -> bool:
    """Whether a prompt says nothing."""
    return not (prompt.strip() if isinstance(prompt, str) else any(turn.content.strip() for turn in prompt))


def split_key(record: Record) -> str:
    """The hash that puts a record on a side: that of its prompt.

    Records of plain text have no prompt; their response takes its place, or all would fall on one side.
    """
    if not is_empty_prompt(record.prompt) or isinstance(record, PromptRecord):
        return prompt_key(record.prompt)
    return prompt_key(record.response if isinstance(record, Demonstration) else record.chosen)


def key_is_held_out(key: str, share: float) -> bool:
    """Whether a hash of `prompt_key` falls into the share that is held out."""
    return int(key, 16) < share * _HASH_RANGE


def is_held_out(prompt: str | Sequence[Message], share: float) -> bool:
    """Whether a prompt is held out for validation and evaluation.

    The hash alone decides, so that one prompt falls on the same side in every source and whatever else is in
    it. Shares are nested: what is held out at 0.1 is held out at 0.2.

    Args:
        prompt: Text or messages.
        share: Share to hold out, in [0, 1).
    """
    return key_is_held_out(prompt_key(prompt), share)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines (UTF-8, one newline after each), creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(record.to_json() + "\n" for record in records)


@overload
def read_records(path: Path, kind: Literal["demonstrations"]) -> list[Demonstration]: ...
@overload
def read_records(path: Path, kind: Literal["preferences"]) -> list[PreferencePair]: ...
@overload
def read_records(path: Path, kind: Literal["prompts"]) -> list[PromptRecord]: ...
def read_records(path: Path, kind: Kind) -> Any:
    """Read what `write_records` wrote.

    Args:
        path: A JSON lines file.
        kind: What its lines are.

    Returns:
        The records in the file's order; none for an empty file.

    Raises:
        DataError: The file is missing or a line is no such record.
    """
    record_type = _RECORD_TYPES[kind]
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 may stand inside a text
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file; a file of {kind} is needed; "
            f"give `data.{kind}` or a source that they can be derived from"
        ) from None
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            records.append(record_type.from_json(line))
        except ValidationError as error:
            what = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in what["loc"]) or "line"
            raise DataError(
                f"{path}:{number}: {where}: {what['msg']}; a line of {kind} as the `data` stage writes it is "
                f"needed; run the stage that made the file again"
            ) from None
    return records


@overload
def read_split(folder: Path, kind: Literal["demonstrations"], split: Split) -> list[Demonstration]: ...
@overload
def read_split(folder: Path, kind: Literal["preferences"], split: Split) -> list[PreferencePair]: ...
@overload
def read_split(folder: Path, kind: Literal["prompts"], split: Split) -> list[PromptRecord]: ...
def read_split(folder: Path, kind: Any, split: Split) -> Any:
    """Read one split of an artifact of the `data` or `preferences` stage.

    Args:
        folder: The artifact's folder.
        kind: Which records.
        split: `train` or `held_out`.

    Raises:
        DataError: The artifact has no such records.
    """
    return read_records(split_path(folder, kind, split), kind)


def split_path(folder: Path, kind: Kind, split: Split) -> Path:
    """Where a split lies in an artifact: `<kind>/<split>.jsonl`."""
    return folder / kind / f"{split}.jsonl"
