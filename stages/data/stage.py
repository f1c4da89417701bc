"""The data stage: read the sources, derive what is missing, split by hash, write the records.

The bytes depend on the sources and the configuration alone: no seed, no time, no path. Without torch.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from data.config import DataConfig, SourceConfig
from data.errors import DataError
from data.formats import (
    chosen_demonstrations,
    parse_demonstrations,
    parse_preferences,
    parse_prompts,
    prompts_of,
)
from data.schema import (
    KINDS,
    SPLITS,
    Demonstration,
    Kind,
    PreferencePair,
    PromptRecord,
    Record,
    split_path,
    write_records,
)
from data.sources import read_rows, source_digest
from stages.contract import Artifact, StageContext, StageOutput
from stages.data.split import split_records

logger = logging.getLogger("stages.data")


def run(config: DataConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageOutput:
    """Write `{demonstrations,preferences,prompts}/{train,held_out}.jsonl`, of the kinds there are.

    Args:
        config: The three sources.
        inputs: None; every stage has the argument.
        context: Where to write.

    Returns:
        Counts as metrics: `<kind>/{train,held_out,duplicates,leaks}` and `skipped/<kind>_<reason>`; as notes,
        where each kind comes from and the digests of the sources.

    Raises:
        DataError: A source cannot be read or used, or no record of a kind is left to train on.
    """
    records: dict[Kind, list[Record]] = {}
    metrics: dict[str, float] = {}
    shares: dict[Kind, float] = {}
    origins: dict[str, str] = {}
    digests: dict[str, str] = {}

    # 1. Read what is given.
    for done, kind in enumerate(KINDS):
        source: SourceConfig | None = getattr(config, kind)
        if source is None:
            continue
        context.report_progress(done, len(KINDS) + 1, f"reading {kind}")
        records[kind], skipped = _read(source, kind, context)
        metrics |= {f"skipped/{kind}_{reason}": count for reason, count in sorted(skipped.items())}
        shares[kind], origins[kind] = source.held_out, "source"
        digests[kind] = source_digest(source, context.config_dir, name=f"data.{kind}")

    # 2. Derive what is not; a derived kind is split like the one it comes from.
    for kind, origin, derived in _derive(records):
        records[kind], shares[kind], origins[kind] = derived, shares[origin], origin
        logger.info("data: %s are derived from %s", kind, origin)

    # 3. Drop exact duplicates, split.
    distinct: dict[Kind, list[Record]] = {kind: list(dict.fromkeys(rows)) for kind, rows in records.items()}
    splits = split_records(distinct, shares)

    # 4. Write.
    context.report_progress(len(KINDS), len(KINDS) + 1, "writing")
    for kind in (kind for kind in KINDS if kind in splits):
        split = splits[kind]
        if not split.train:
            raise DataError(
                f"data.{kind}: nothing is left to train on: {split.num_leaks} of {len(distinct[kind])} "
                f"records have a prompt that another source holds out; prompts outside the held-out ones are "
                f"needed; give more data, or the same `held_out` share to all sources"
            )
        for side in SPLITS:
            write_records(split_path(context.payload_dir, kind, side), getattr(split, side))
        metrics |= {
            f"{kind}/train": len(split.train),
            f"{kind}/held_out": len(split.held_out),
            f"{kind}/duplicates": len(records[kind]) - len(distinct[kind]),
            f"{kind}/leaks": split.num_leaks,
        }
    context.metrics.write(0, metrics)
    context.report_progress(len(KINDS) + 1, len(KINDS) + 1, "done")
    _log(metrics)
    return StageOutput(metrics=metrics, notes={"origins": origins, "source_digests": digests})


def _read(source: SourceConfig, kind: Kind, context: StageContext) -> tuple[list[Record], Counter[str]]:
    name = f"data.{kind}"
    rows = read_rows(source, context.config_dir, name=name)
    options: dict[str, Any] = {"name": name, "record_format": source.format, "columns": source.columns}
    match kind:
        case "demonstrations":
            demonstrations = parse_demonstrations(rows, **options)
            return list(demonstrations.records), demonstrations.skipped
        case "preferences":
            pairs = parse_preferences(rows, **options)
            return list(pairs.records), pairs.skipped
        case "prompts":
            prompts = parse_prompts(rows, **options)
            return list(prompts.records), prompts.skipped


def _derive(records: Mapping[Kind, list[Record]]) -> list[tuple[Kind, Kind, list[Record]]]:
    """Kinds that are missing and can be had, each with the kind that it comes from."""
    derived: list[tuple[Kind, Kind, list[Record]]] = []
    pairs = [record for record in records.get("preferences", []) if isinstance(record, PreferencePair)]
    demonstrations = [record for record in records.get("demonstrations", []) if isinstance(record, Demonstration)]
    if "demonstrations" not in records:
        derived.append(("demonstrations", "preferences", [*chosen_demonstrations(pairs)]))
    if "prompts" not in records:
        prompts: list[PromptRecord] = prompts_of(pairs) or prompts_of(demonstrations)
        if prompts:
            derived.append(("prompts", "preferences" if pairs else "demonstrations", [*prompts]))
    return derived


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
