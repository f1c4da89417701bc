"""The data stage: read the sources, derive what is missing, split by hash, write the records.

The bytes depend on the sources and the configuration alone: no seed, no time, no path. Without torch.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from data.augmentation.records import augment
from data.config import DataConfig, RowsConfig, SourceConfig, part_key
from data.drafts import rewrite_texts
from data.errors import DataError
from data.formats import chosen_demonstrations, parse_sources, prompts_of
from data.parsed import Parsed
from data.quality.personal import mask_personal_data
from data.quality.report import CheckedRecords, QualityReport, check_records
from data.quarantine import QUARANTINE, Skipped, check_share, write_quarantine
from data.schema import (
    KINDS,
    Demonstration,
    Kind,
    PreferencePair,
    Record,
    Split,
    split_key,
    split_path,
    write_records,
)
from data.sources import read_rows, source_digest
from stages.contract import Artifact, StageContext, StageOutput
from stages.data.split import split_records, thin_out

logger = logging.getLogger("stages.data")

_LOG_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
_NUM_EXAMPLES = 3

_Part = tuple[Kind, str]
"""A kind and the name of one of its sources; empty where there is one."""


class DataQualityError(DataError):
    """The records can be read, and a check found an error in them.

    Attributes:
        report: All that was found.
        metrics: As a stage that goes on gives them.
    """

    def __init__(self, report: QualityReport, metrics: dict[str, float]) -> None:
        """Tell the errors, and how they are overruled."""
        self.report, self.metrics = report, metrics
        errors = [finding for finding in report.findings if finding.level == "error"]
        overruled = ", ".join(dict.fromkeys(f"{finding.check}: warning" for finding in errors))
        super().__init__(
            "\n".join(f"{finding.text}; or go on with `data.checks.levels: {{{overruled}}}`" for finding in errors)
        )


def run(config: DataConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageOutput:
    """Write `{demonstrations,preferences,prompts}/{train,held_out}.jsonl`, of the kinds there are.

    `quarantine.jsonl` lies beside them where rows were skipped: in the artifact, so that a run which takes this stage
    from the store has it too. A stage that stops for them leaves it in its own folder.

    Args:
        config: The three sources, and how many of their rows may be skipped.
        inputs: None; every stage has the argument.
        context: Where to write.

    Returns:
        Counts as metrics: `<kind>/{train,held_out,duplicates,leaks}`, `rows/{read,skipped}` and
        `skipped/<kind>_<reason>`, `masked/<kind of data>`, `augmentation/*`, `quality/<kind>_<check>`; as notes,
        where each kind comes from, the digests of the sources and the report of the checks.

    Raises:
        DataError: A source cannot be read or used, too many of its rows are skipped, it has no two prompts to split,
            no record of a kind is left to train on, or a check found an error (`DataQualityError`).
        ConfigError: What `data.augmentation` needs is not there.
        StageError: An endpoint that rewords prompts fails for good.
    """
    (context.stage_dir / QUARANTINE).unlink(missing_ok=True)
    sides: dict[_Part, list[Record]] = {}
    shares: dict[_Part, float] = {}
    repeats: Counter[Kind] = Counter()
    metrics: dict[str, float] = {}
    origins: dict[str, str] = {}
    digests: dict[str, str] = {}
    quarantine: list[tuple[str, Skipped]] = []
    num_rows = 0
    rows_of: dict[Kind, int] = {}
    reasons: dict[Kind, Mapping[str, int]] = {}
    masked: Counter[str] = Counter()
    checked: dict[Kind, CheckedRecords] = {}

    # 1. Read what is given.
    for done, kind in enumerate(KINDS):
        source: SourceConfig | None = getattr(config, kind)
        if source is None:
            continue
        context.report_progress(done, len(KINDS) + 1, f"reading {kind}")
        skipped: Counter[str] = Counter()
        rows_before = num_rows
        for part, parsed in _read(source, kind, config, masked, context).items():
            sides[kind, part] = list(parsed.records)
            shares[kind, part] = source.parts[part].held_out
            repeats[kind] += parsed.num_repeats + parsed.skipped["duplicate"]
            num_rows += parsed.num_rows
            quarantine += [(part_key(kind, part), each) for each in parsed.quarantine]
            skipped += parsed.skipped
        rows_of[kind], reasons[kind] = num_rows - rows_before, skipped
        metrics |= {f"skipped/{kind}_{reason}": count for reason, count in sorted(skipped.items())}
        origins[kind] = "source"
        digests |= {
            part_key(kind, part): source_digest(rows, context.config_dir, name=part_key(f"data.{kind}", part))
            for part, rows in source.parts.items()
        }

    # 2. Derive what is not; a derived kind is split like the one it comes from.
    for kind, origin, derived in _derive(sides):
        origins[kind] = origin
        logger.info("data: %s are derived from %s", kind, origin)
        seen: set[Record] = set()
        for part, rows in derived.items():
            distinct = dict.fromkeys(row for row in rows if row not in seen)
            seen.update(distinct)
            sides[kind, part], shares[kind, part] = list(distinct), shares[origin, part]
            repeats[kind] += len(rows) - len(distinct)

    # 3. Split.
    splits = split_records(sides, shares)

    # 4. Mix the training sides.
    metrics |= {"rows/read": num_rows, "rows/skipped": len(quarantine)}
    written: dict[Kind, dict[Split, list[Record]]] = {}
    for kind in (kind for kind in KINDS if kind in origins):
        parts = {part: splits[kind, part] for each, part in splits if each == kind}
        train = {part: split.train for part, split in parts.items()}
        weights = _weights(config, origins[kind] if origins[kind] in KINDS else kind)
        mixed = thin_out(train, weights) if weights else train
        written[kind] = {
            "train": [record for part, rows in mixed.items() for record in _named(rows, part)],
            "held_out": [record for part, split in parts.items() for record in _named(split.held_out, part)],
        }
        num_leaks = sum(split.num_leaks for split in parts.values())
        if not written[kind]["train"]:
            raise DataError(
                f"data.{kind}: nothing is left to train on: {num_leaks} of "
                f"{sum(len(sides[kind, part]) for part in parts)} "
                f"records have a prompt that another source holds out; prompts outside the held-out ones are "
                f"needed; give more data, or the same `held_out` share to all sources"
            )
        metrics |= {
            f"{kind}/held_out": len(written[kind]["held_out"]),
            f"{kind}/duplicates": repeats[kind],
            f"{kind}/leaks": num_leaks,
        }
        if kind in reasons:  # before there are reworded copies, which are near duplicates on purpose
            checked[kind] = CheckedRecords(
                train=written[kind]["train"],
                held_out=written[kind]["held_out"],
                num_rows=rows_of[kind],
                reasons=reasons[kind],
                examples=_examples(kind, quarantine),
            )
        for part in parts:
            if part:
                metrics[f"{kind}/mix/{part}"] = len(mixed[part])
                metrics[f"{kind}/mix/{part}_thinned_out"] = len(train[part]) - len(mixed[part])
    metrics |= {f"masked/{kind}": count for kind, count in sorted(masked.items())}

    # 5. Add reworded copies, write.
    augmented = augment(
        {kind: both["train"] for kind, both in written.items()},
        frozenset(split_key(record) for both in written.values() for record in both["held_out"]),
        config.augmentation,
        config_dir=context.config_dir,
        cache_dir=context.stage_dir,
        progress=lambda done, total: context.report_progress(done, total, "prompts reworded"),
    )
    metrics |= augmented.metrics
    write_quarantine(context.payload_dir / QUARANTINE, quarantine)
    context.report_progress(len(KINDS), len(KINDS) + 1, "writing")
    for kind, both in written.items():
        train_rows = both["train"] + augmented.copies[kind]
        write_records(split_path(context.payload_dir, kind, "train"), train_rows)
        write_records(split_path(context.payload_dir, kind, "held_out"), both["held_out"])
        metrics[f"{kind}/train"] = len(train_rows)

    # 6. Check what was read.
    context.report_progress(len(KINDS), len(KINDS) + 1, "checking")
    report = check_records(checked, config.checks)
    for finding in report.findings:
        metrics[f"quality/{finding.kind}_{finding.check}"] = finding.count
        logger.log(_LOG_LEVELS[finding.level], "%s", finding.text)
    context.metrics.write(0, metrics)
    context.report_progress(len(KINDS) + 1, len(KINDS) + 1, "done")
    _log(metrics)
    if any(finding.level == "error" for finding in report.findings):
        raise DataQualityError(report, metrics)
    return StageOutput(
        metrics=metrics, notes={"origins": origins, "source_digests": digests, "quality": json.loads(report.to_json())}
    )


def _read(
    source: SourceConfig, kind: Kind, config: DataConfig, masked: Counter[str], context: StageContext
) -> dict[str, Parsed[Any]]:
    """The records of each part of a source."""
    quarantine, max_share = context.stage_dir / QUARANTINE, config.max_skipped_share
    keys = {part: part_key(f"data.{kind}", part) for part in source.parts}

    def mask(text: str) -> str:
        new, found = mask_personal_data(text)
        masked.update(found)
        return new

    found = parse_sources(
        [
            (keys[part], rows, read_rows(rows, context.config_dir, name=keys[part]))
            for part, rows in source.parts.items()
        ],
        kind,
        quarantine=quarantine,
        rewrite=(lambda draft: rewrite_texts(draft, mask)) if config.mask_personal_data else None,
    )
    result = dict(zip(source.parts, found, strict=True))
    for part, parsed in result.items():
        rows, name = source.parts[part], keys[part]
        check_share(parsed.quarantine, parsed.num_rows, max_share, name=name, quarantine=quarantine)
        _check_splittable(rows, name, parsed.records)
        if rows.limit is not None and parsed.num_rows < rows.limit:
            logger.warning(
                "data: %s: limit %d, but there are only %d rows", part_key(kind, part), rows.limit, parsed.num_rows
            )
    return result


def _examples(kind: Kind, quarantine: Sequence[tuple[str, Skipped]]) -> dict[str, tuple[str, ...]]:
    """Places of the first skipped rows of a kind by reason."""
    places: dict[str, list[str]] = {}
    for source, each in quarantine:
        if source.partition(".")[0] == kind:
            place = f"{each.row.place or each.row.origin}{f' {each.note}' if each.note else ''}"
            places.setdefault(each.reason, []).append(place)
    return {reason: tuple(found[:_NUM_EXAMPLES]) for reason, found in places.items()}


def _named(records: Sequence[Record], part: str) -> list[Record]:
    """The records with the name of their source, where there are several."""
    return [record.model_copy(update={"source": part}) for record in records] if part else list(records)


def _weights(config: DataConfig, kind: str) -> dict[str, float]:
    """Weight of each part of a source; none where all rows are used."""
    source: SourceConfig | None = getattr(config, kind)
    mix = {} if source is None else source.mix
    return {name: part.weight for name, part in mix.items() if part.weight is not None}


def _check_splittable(source: RowsConfig, name: str, records: Sequence[Record]) -> None:
    if source.held_out == 0.0 or len({split_key(record) for record in records}) > 1:
        return
    raise DataError(
        f"{name}: all rows share one prompt, and `held_out: {source.held_out:.4g}` asks for a part to be held out; two "
        f"prompts or more are needed; add rows, or set `{name}.held_out: 0` to train without validation"
    )


def _derive(sides: Mapping[_Part, Sequence[Record]]) -> Iterator[tuple[Kind, Kind, dict[str, list[Record]]]]:
    """Kinds that are missing and can be had, each with the kind that it comes from and the records of its parts."""
    given = {kind for kind, _ in sides}
    pairs = {part: cast("list[PreferencePair]", rows) for (kind, part), rows in sides.items() if kind == "preferences"}
    demonstrations = {
        part: cast("list[Demonstration]", rows) for (kind, part), rows in sides.items() if kind == "demonstrations"
    }
    if "demonstrations" not in given:
        yield "demonstrations", "preferences", {part: [*chosen_demonstrations(rows)] for part, rows in pairs.items()}
    if "prompts" not in given:
        origin: Kind = "preferences" if pairs else "demonstrations"
        prompts = {part: [*prompts_of(rows)] for part, rows in (pairs or demonstrations).items()}
        if any(prompts.values()):
            yield "prompts", origin, {part: [*rows] for part, rows in prompts.items() if rows}


def _log(metrics: Mapping[str, float]) -> None:
    for kind in KINDS:
        if f"{kind}/train" not in metrics:
            continue
        counts = ", ".join(
            f"{name.removeprefix(f'{kind}/').removeprefix(f'skipped/{kind}_')} {count:g}"
            for name, count in metrics.items()
            if name.startswith((f"{kind}/", f"skipped/{kind}_"))
        )
        logger.info("data: %s: %s", kind, counts)
    if metrics["rows/skipped"]:
        logger.warning(
            "data: %g of %g rows skipped; %s of the artifact holds them", metrics["rows/skipped"],
            metrics["rows/read"], QUARANTINE,
        )  # fmt: skip
