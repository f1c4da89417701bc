"""The data stage: read the sources, derive what is missing, split by hash, write the records.

The bytes depend on the sources and the configuration alone: no seed, no time, no path. Without torch.
"""

import logging
from collections.abc import Mapping, Sequence

from data.config import DataConfig, SourceConfig
from data.errors import DataError
from data.formats import chosen_demonstrations, parse_source, prompts_of
from data.parsed import Parsed
from data.quarantine import QUARANTINE, Skipped, check_share, write_quarantine
from data.schema import (
    KINDS,
    SPLITS,
    Demonstration,
    Kind,
    PreferencePair,
    PromptRecord,
    Record,
    split_key,
    split_path,
    write_records,
)
from data.sources import read_rows, source_digest
from stages.contract import Artifact, StageContext, StageOutput
from stages.data.split import split_records

logger = logging.getLogger("stages.data")


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
        `skipped/<kind>_<reason>`; as notes, where each kind comes from and the digests of the sources.

    Raises:
        DataError: A source cannot be read or used, too many of its rows are skipped, it has no two prompts to split,
            or no record of a kind is left to train on.
    """
    (context.stage_dir / QUARANTINE).unlink(missing_ok=True)
    records: dict[Kind, list[Record]] = {}
    metrics: dict[str, float] = {}
    shares: dict[Kind, float] = {}
    origins: dict[str, str] = {}
    digests: dict[str, str] = {}
    quarantine: list[tuple[str, Skipped]] = []
    num_rows = 0
    num_repeats: dict[Kind, int] = {}

    # 1. Read what is given.
    for done, kind in enumerate(KINDS):
        source: SourceConfig | None = getattr(config, kind)
        if source is None:
            continue
        context.report_progress(done, len(KINDS) + 1, f"reading {kind}")
        parsed = _read(source, kind, config.max_skipped_share, context)
        records[kind], num_repeats[kind] = list(parsed.records), parsed.num_repeats + parsed.skipped["duplicate"]
        num_rows += parsed.num_rows
        quarantine += [(kind, each) for each in parsed.quarantine]
        metrics |= {f"skipped/{kind}_{reason}": count for reason, count in sorted(parsed.skipped.items())}
        shares[kind], origins[kind] = source.held_out, "source"
        digests[kind] = source_digest(source, context.config_dir, name=f"data.{kind}")

    # 2. Derive what is not; a derived kind is split like the one it comes from.
    for kind, origin, derived in _derive(records):
        records[kind], shares[kind], origins[kind] = derived, shares[origin], origin
        logger.info("data: %s are derived from %s", kind, origin)

    # 3. Drop what derivation repeats, split.
    distinct: dict[Kind, list[Record]] = {kind: list(dict.fromkeys(rows)) for kind, rows in records.items()}
    splits = split_records(distinct, shares)

    # 4. Write.
    write_quarantine(context.payload_dir / QUARANTINE, quarantine)
    metrics |= {"rows/read": num_rows, "rows/skipped": len(quarantine)}
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
            f"{kind}/duplicates": len(records[kind]) - len(distinct[kind]) + num_repeats.get(kind, 0),
            f"{kind}/leaks": split.num_leaks,
        }
    context.metrics.write(0, metrics)
    context.report_progress(len(KINDS) + 1, len(KINDS) + 1, "done")
    _log(metrics)
    return StageOutput(metrics=metrics, notes={"origins": origins, "source_digests": digests})


def _read(
    source: SourceConfig, kind: Kind, max_share: float, context: StageContext
) -> Parsed[Demonstration] | Parsed[PreferencePair] | Parsed[PromptRecord]:
    name, quarantine = f"data.{kind}", context.stage_dir / QUARANTINE
    parsed = parse_source(read_rows(source, context.config_dir, name=name), kind, source, quarantine=quarantine)
    check_share(parsed.quarantine, parsed.num_rows, max_share, name=name, quarantine=quarantine)
    _check_splittable(source, name, parsed.records)
    if source.limit is not None and parsed.num_rows < source.limit:
        logger.warning("data: %s: limit %d, but there are only %d rows", kind, source.limit, parsed.num_rows)
    return parsed


def _check_splittable(source: SourceConfig, name: str, records: Sequence[Record]) -> None:
    if source.held_out == 0.0 or len({split_key(record) for record in records}) > 1:
        return
    raise DataError(
        f"{name}: all rows share one prompt, and `held_out: {source.held_out:.4g}` asks for a part to be held out; two "
        f"prompts or more are needed; add rows, or set `{name}.held_out: 0` to train without validation"
    )


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
    if metrics["rows/skipped"]:
        logger.warning(
            "data: %g of %g rows skipped; %s of the artifact holds them", metrics["rows/skipped"],
            metrics["rows/read"], QUARANTINE,
        )  # fmt: skip
