"""What is in the data of a configuration, or of one file, as the stages will see it; nothing is trained.

The `data` stage runs in a folder that is thrown away, so that what is told is what a run would do. With a tokenizer its
records are then written as each stage writes them, counted against the stage's limits, and some are kept as samples.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from data.assistant_turns import encode_demonstrations
from data.batch_encoding import encode_episodes
from data.chat import decode_with_special_tokens, encode_episode, encode_prompt
from data.config import DataConfig, SourceConfig
from data.errors import DataError
from data.quality.config import ChecksConfig
from data.quality.findings import Finding, make_finding
from data.quality.lengths import Lengths, describe_lengths
from data.recognition import recognise_format
from data.schema import KINDS, SPLITS, Demonstration, Kind, PreferencePair, Record, read_split, split_path
from data.sources import read_rows
from pipeline.augmentation_checks import without_endpoints
from pipeline.config import PipelineConfig
from stages.contract import StageContext
from stages.data import stage as data_stage
from stages.metrics import MetricsWriter

NUM_SAMPLES = 16
_ROLES = {"response": "learned"}

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Limit:
    """A stage's limit on the length of its rows.

    Attributes:
        stage: The stage.
        setting: Dotted name.
        max_tokens: Longer rows are dropped.
        kind: Of the rows.
        prompt_alone: The limit is on prompts; otherwise on the prompt with its (longer) response.
    """

    stage: str
    setting: str
    max_tokens: int
    kind: Kind
    prompt_alone: bool


@dataclass(frozen=True)
class Sample:
    """A row as the model will see it.

    Attributes:
        kind: Of the row.
        parts: Pieces of text in order, each with its role: `context` (read, not learned), `learned` (in the loss),
            `chosen` and `rejected` (scored at their last token).
        tokens: Number of tokens of each piece; none without a tokenizer.
    """

    kind: Kind
    parts: tuple[tuple[str, str], ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class DataCheck:
    """All that `rlhf data check` tells.

    Attributes:
        name: What was checked.
        metrics: Counts of the `data` stage.
        quality: The report of the stage's checks, as plain values.
        lengths: Tokens by kind and column; empty without a tokenizer.
        truncation: For each limit of the configuration: its setting, rows, dropped rows, limit.
        findings: Of the stage and of truncation, the worst first.
        samples: Some rows as the model will see them.
    """

    name: str
    metrics: dict[str, float]
    quality: dict[str, Any]
    lengths: dict[str, dict[str, Lengths]]
    truncation: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    samples: list[Sample]

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1, sort_keys=True) + "\n"

    @property
    def errors(self) -> list[str]:
        """What would stop a run."""
        return [finding["text"] for finding in self.findings if finding["level"] == "error"]


def source_of_path(path: str) -> DataConfig:
    """A file, folder or glob as the one source of a configuration, of the kind that its first row can give.

    Raises:
        DataError: It cannot be read, or fits no format.
    """
    source = SourceConfig(path=path)
    row = next(iter(read_rows(source, None, name="data")))
    problems = []
    kinds: tuple[Kind, ...] = ("preferences", "demonstrations", "prompts")
    for kind in kinds:
        try:
            recognise_format(row, kind, name=f"data.{kind}")
        except DataError as error:
            problems.append(str(error))
        else:
            return DataConfig.model_validate({kind: source, "max_skipped_share": 1.0})
    raise DataError("\n".join(problems))


def check_data(
    data: DataConfig,
    *,
    name: str,
    config_dir: Path | None,
    tokenizer: Any = None,
    limits: Sequence[Limit] = (),
    all_responses: bool = False,
    progress: Progress,
) -> DataCheck:
    """Run the `data` stage and look at what it wrote. Prompts that a server would reword are left as they are.

    Args:
        data: The sources.
        name: For the report's title.
        config_dir: Folder of the configuration file, for relative paths.
        tokenizer: Of the base; None leaves out what needs one.
        limits: From `limits_of`.
        all_responses: Whether SFT learns all turns of the assistant; the samples show it.
        progress: Told how far it is.

    Raises:
        DataError: The stage stops; for findings it does not.
    """
    with tempfile.TemporaryDirectory(prefix="rlhf-data-check-") as folder:
        payload, metrics, quality = _run_stage(without_endpoints(data), Path(folder), config_dir, progress)
        kinds = [kind for kind in KINDS if split_path(payload, kind, "train").is_file()]
        records = {kind: [row for split in SPLITS for row in read_split(payload, kind, split)] for kind in kinds}
    lengths: dict[str, dict[str, Lengths]] = {}
    truncation: list[dict[str, Any]] = []
    findings: list[Finding] = []
    if tokenizer is not None:
        for number, kind in enumerate(kinds):
            progress(number, len(kinds), f"tokenising {kind}")
            counted = _counts(tokenizer, records[kind])
            lengths[kind] = {
                column: describe_lengths([row[column] for row in counted]) for column in (counted[0] if counted else ())
            }
            for limit in (limit for limit in limits if limit.kind == kind):
                over = sum(_length(row, limit) > limit.max_tokens for row in counted)
                truncation.append(asdict(limit) | {"rows": len(counted), "dropped": over})
                findings += truncation_finding(limit, over, len(counted), data.checks)
    ranked = [*quality["findings"], *(finding.to_json() for finding in findings)]
    ranked.sort(key=lambda finding: ("error", "warning", "info").index(finding["level"]))
    return DataCheck(
        name, metrics, quality, lengths, truncation, ranked, list(_samples(records, tokenizer, all_responses))
    )


def limits_of(config: PipelineConfig) -> list[Limit]:
    """The limits on the length of rows that a configuration's stages have."""
    limits = [Limit("sft", "sft.max_length", config.sft.max_length, "demonstrations", prompt_alone=False)]
    trains_one = config.reward_model is not None and config.reward_model.pretrained is None
    if config.reward_model is not None and trains_one and config.preferences is None:
        length = config.reward_model.max_length
        limits.append(Limit("reward_model", "reward_model.max_length", length, "preferences", prompt_alone=False))
    for stage, section in (("preferences", config.preferences), ("ppo", config.ppo), ("evaluation", config.evaluation)):
        if section is not None:
            setting = f"{stage}.max_prompt_tokens"
            limits.append(Limit(stage, setting, section.max_prompt_tokens, "prompts", prompt_alone=True))
    return limits


def truncation_finding(limit: Limit, over: int, rows: int, checks: ChecksConfig) -> list[Finding]:
    """What is to be said of the rows that a limit drops."""
    return make_finding(
        "truncation", limit.kind, checks, count=over, share=over / max(rows, 1),
        text=f"data.{limit.kind}: {over} of {rows} rows are longer than {limit.setting}={limit.max_tokens} tokens, and "
        f"the {limit.stage} stage will drop them; rows that fit are needed; raise `{limit.setting}`, or shorten the "
        f"rows",
    )  # fmt: skip


def _run_stage(
    data: DataConfig, folder: Path, config_dir: Path | None, progress: Progress
) -> tuple[Path, dict[str, float], dict[str, Any]]:
    payload = folder / "payload"
    payload.mkdir()
    with MetricsWriter(folder / "metrics.jsonl") as metrics:
        context = StageContext(
            payload_dir=payload,
            scratch_dir=folder,
            stage_dir=folder,
            seed=0,
            device="cpu",
            metrics=metrics,
            report_progress=progress,
            config_dir=config_dir,
        )
        try:
            output = data_stage.run(data, {}, context)
        except data_stage.DataQualityError as error:  # the report tells it with all else
            return payload, error.metrics, json.loads(error.report.to_json())
    return payload, dict(output.metrics), output.notes["quality"]


def _counts(tokenizer: Any, records: Sequence[Record]) -> list[dict[str, int]]:
    """Tokens of the parts of each record as its stage writes them; a response's end with EOS."""
    texts = [_responses(record) for record in records]
    encoded = encode_episodes(
        tokenizer, [(record.prompt, tuple(own.values())) for record, own in zip(records, texts, strict=True)]
    )
    return [
        {"prompt": len(ids.prompt)} | dict(zip(own, map(len, ids.responses), strict=True))
        for own, ids in zip(texts, encoded, strict=True)
    ]


def _responses(record: Record) -> dict[str, str]:
    """The responses of a record by what they are."""
    match record:
        case Demonstration():
            return {"response": record.response}
        case PreferencePair():
            return {"chosen": record.chosen, "rejected": record.rejected}
        case _:
            return {}


def _length(row: dict[str, int], limit: Limit) -> int:
    """What a limit is on: the prompt, or the prompt with its longest response."""
    if limit.prompt_alone:
        return row["prompt"]
    return row["prompt"] + max((count for name, count in row.items() if name != "prompt"), default=0)


def _samples(records: dict[Kind, list[Record]], tokenizer: Any, all_responses: bool) -> Iterator[Sample]:
    """Rows chosen by a hash of their text, so that they are the same each time: as many of each kind."""
    for number, (kind, rows) in enumerate(records.items()):
        count = NUM_SAMPLES // len(records) + (number < NUM_SAMPLES % len(records))
        for record in sorted(rows, key=lambda row: hashlib.sha256(row.to_json().encode()).digest())[:count]:
            yield _sample(kind, record, tokenizer, all_responses)


def _sample(kind: Kind, record: Record, tokenizer: Any, all_responses: bool) -> Sample:
    responses = [(_ROLES.get(name, name), text) for name, text in _responses(record).items()]
    if tokenizer is None:
        prompt = record.prompt
        text = prompt if isinstance(prompt, str) else "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
        return Sample(kind, (("context", text), *responses), ())
    if isinstance(record, Demonstration):
        return _demonstration_sample(record, tokenizer, all_responses)
    ids = [encode_prompt(tokenizer, record.prompt)]
    ids += [encode_episode(tokenizer, record.prompt, text)[1] for _, text in responses]
    roles = ["context", *(role for role, _ in responses)]
    texts = [decode_with_special_tokens(tokenizer, each) for each in ids]
    return Sample(kind, tuple(zip(roles, texts, strict=True)), tuple(map(len, ids)))


def _demonstration_sample(record: Demonstration, tokenizer: Any, all_responses: bool) -> Sample:
    """A demonstration, cut where the loss begins and ends."""
    (row,) = encode_demonstrations(tokenizer, [record], all_responses=all_responses).rows
    runs = [(learned, list(run)) for learned, run in groupby(zip(row.ids, row.mask, strict=True), key=itemgetter(1))]
    pieces = [
        ("learned" if learned else "context", decode_with_special_tokens(tokenizer, [token for token, _ in run]))
        for learned, run in runs
    ]
    return Sample("demonstrations", tuple(pieces), tuple(len(run) for _, run in runs))
