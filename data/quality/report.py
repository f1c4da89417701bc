"""All checks on the records of a configuration: figures for a reader, findings for a decision."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data.parallel import map_chunks
from data.quality.config import ChecksConfig
from data.quality.findings import Finding, counts_by_level, make_finding
from data.quality.languages import languages_of
from data.quality.leakage import find_leaks
from data.quality.lengths import LengthBias, Lengths, describe_lengths, length_bias
from data.quality.near_duplicates import near_duplicates
from data.quality.personal import PersonalKind, find_personal_data
from data.quality.words import prompt_text, record_texts
from data.schema import Demonstration, Kind, PreferencePair, Record
from data.shown import shown

Measure = Callable[[Sequence[str]], list[int]]
"""Lengths of texts."""

_NUM_EXAMPLES = 3
_SHOWN_CHARS = 120


@dataclass(frozen=True)
class CheckedRecords:
    """The records of one kind, and what was left out on the way to them.

    Attributes:
        train: Records to train on.
        held_out: Records for validation and evaluation.
        num_rows: Rows that were read.
        reasons: Number of skipped rows by reason.
        examples: Places of some skipped rows by reason.
    """

    train: Sequence[Record]
    held_out: Sequence[Record]
    num_rows: int
    reasons: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class KindReport:
    """Figures of one kind.

    Attributes:
        rows: Rows that were read.
        train: Records to train on.
        held_out: Records held out.
        skipped: Number of skipped rows by reason.
        languages: Number of sampled records by language.
        lengths: Lengths of prompts and responses, by column.
        bias: Of the chosen responses' lengths; of preferences alone.
        near_duplicates: Records that nearly repeat an earlier one.
        personal_data: Records with personal data, by kind of it.
    """

    rows: int
    train: int
    held_out: int
    skipped: dict[str, int]
    languages: dict[str, int]
    lengths: dict[str, Lengths]
    bias: LengthBias | None
    near_duplicates: int
    personal_data: dict[str, int]


@dataclass(frozen=True)
class QualityReport:
    """What is in the data.

    Attributes:
        unit: What lengths are counted in.
        kinds: Figures of each kind that was read from a source.
        findings: The worst first.
    """

    unit: str
    kinds: dict[Kind, KindReport]
    findings: list[Finding]

    def to_json(self) -> str:
        """The report as JSON text, the same for the same records."""
        values: dict[str, Any] = {
            "unit": self.unit,
            "kinds": {kind: asdict(each) for kind, each in self.kinds.items()},
            "findings": [finding.to_json() for finding in self.findings],
            "levels": dict(counts_by_level(self.findings)),
        }
        return json.dumps(values, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def check_records(
    records: Mapping[Kind, CheckedRecords],
    config: ChecksConfig,
    *,
    measure: Measure | None = None,
    unit: str = "characters",
) -> QualityReport:
    """Check the records of every kind that was read from a source.

    Args:
        records: By kind; derived kinds repeat what they are derived from and are left out.
        config: Levels and where they begin.
        measure: Counts the lengths of texts; None counts characters.
        unit: What it counts.

    Returns:
        Figures and findings.
    """
    count = measure or (lambda texts: [len(text) for text in texts])
    kinds: dict[Kind, KindReport] = {}
    findings: list[Finding] = []
    every_train = [record for each in records.values() for record in each.train]
    for kind, each in records.items():
        rows = [*each.train, *each.held_out]
        lengths, bias = _lengths(rows, count)
        repeats, repeated = _near_duplicates(each.train, config)
        personal, with_personal = _personal(rows)
        kinds[kind] = KindReport(
            rows=each.num_rows,
            train=len(each.train),
            held_out=len(each.held_out),
            skipped=dict(sorted(each.reasons.items())),
            languages=dict(languages_of(["\n".join(record_texts(row)) for row in rows], config.language_sample)),
            lengths=lengths,
            bias=bias,
            near_duplicates=len(repeats),
            personal_data=dict(sorted(personal.items())),
        )
        findings += _skipped_findings(kind, each, config)
        findings += make_finding(
            "near_duplicates", kind, config, count=len(repeats), share=len(repeats) / max(len(each.train), 1),
            text=f"data.{kind}: {len(repeats)} of {len(each.train)} training records nearly repeat an earlier one "
            f"(similarity {config.near_duplicate_similarity:g} or more); texts that say something new are needed, or "
            f"they count several times; remove the repeats, or thin the source out", examples=repeated,
        )  # fmt: skip
        if bias is not None and bias.is_clear:
            longer = "longer" if bias.longer_chosen > 0.5 else "shorter"
            share = max(bias.longer_chosen, 1 - bias.longer_chosen)
            findings += make_finding(
                "length_bias", kind, config, count=bias.pairs, share=abs(bias.longer_chosen - 0.5),
                text=f"data.{kind}: in {share:.0%} of {bias.pairs} pairs the chosen response is the {longer} one (mean "
                f"difference {bias.mean_difference:+.1f} {unit}); a share near one half is needed, or the reward model "
                f"learns length; balance the pairs by length, and read `eval/accuracy_shorter_chosen`",
            )  # fmt: skip
        findings += _leak_findings(kind, each, every_train, config)
        findings += make_finding(
            "personal_data", kind, config, count=with_personal, share=with_personal / max(len(rows), 1),
            text=f"data.{kind}: {with_personal} of {len(rows)} records hold what looks like personal data "
            f"({', '.join(f'{name}: {number}' for name, number in sorted(personal.items()))}); text without it is "
            f"needed, or the model may repeat it; set `data.mask_personal_data: true`, or remove it",
        )  # fmt: skip
    order = ("error", "warning", "info")
    return QualityReport(unit, kinds, sorted(findings, key=lambda found: (order.index(found.level), found.kind)))


def _lengths(rows: Sequence[Record], count: Measure) -> tuple[dict[str, Lengths], LengthBias | None]:
    columns: dict[str, list[str]] = {"prompt": [prompt_text(row.prompt) for row in rows]}
    if demonstrations := [row for row in rows if isinstance(row, Demonstration)]:
        columns["response"] = [row.response for row in demonstrations]
    pairs = [row for row in rows if isinstance(row, PreferencePair)]
    if pairs:
        columns |= {"chosen": [row.chosen for row in pairs], "rejected": [row.rejected for row in pairs]}
    counted = {name: count(texts) for name, texts in columns.items()}
    bias = length_bias(counted["chosen"], counted["rejected"]) if pairs else None
    return {name: describe_lengths(lengths) for name, lengths in counted.items()}, bias


def _near_duplicates(train: Sequence[Record], config: ChecksConfig) -> tuple[list[int], tuple[str, ...]]:
    """Numbers of the records that repeat an earlier one, and some of them as text."""
    if config.levels.get("near_duplicates") == "off":
        return [], ()
    # Two pairs on one prompt differ in their responses: a pair is compared with both.
    texts = ["\n".join(record_texts(record)) for record in train]
    clusters = near_duplicates(texts, config.near_duplicate_similarity)
    shown_texts = tuple(
        " | ".join(shown(texts[number], _SHOWN_CHARS) for number in cluster.members[:2])
        for cluster in clusters[:_NUM_EXAMPLES]
    )
    return [number for cluster in clusters for number in cluster.members[1:]], shown_texts


def _personal(rows: Sequence[Record]) -> tuple[Counter[str], int]:
    """Records by kind of personal data, and records with any."""
    texts = ["\n".join(record_texts(row)) for row in rows]
    found = [kinds for chunk in map_chunks(_personal_kinds, texts) for kinds in chunk]
    return Counter(kind for kinds in found for kind in kinds), sum(bool(kinds) for kinds in found)


def _personal_kinds(texts: Sequence[str]) -> list[set[PersonalKind]]:
    return [{piece.kind for piece in find_personal_data(text)} for text in texts]


def _skipped_findings(kind: Kind, each: CheckedRecords, config: ChecksConfig) -> list[Finding]:
    findings: list[Finding] = []
    rows = max(each.num_rows, 1)
    duplicates, opposed, equal = (
        each.reasons.get(reason, 0) for reason in ("duplicate", "contradicting_pair", "equal_responses")
    )
    findings += make_finding(
        "duplicates", kind, config, count=duplicates, share=duplicates / rows,
        text=f"data.{kind}: {duplicates} of {each.num_rows} rows repeat earlier ones and were left out; each row is "
        f"needed once; look where the file was put together", examples=each.examples.get("duplicate", ()),
    )  # fmt: skip
    findings += make_finding(
        "contradictions", kind, config, count=opposed, share=opposed / rows,
        text=f"data.{kind}: {opposed} of {each.num_rows} pairs say the opposite of another one and were left out, all "
        f"sides; one verdict on two responses is needed; ask how the labels were made",
        examples=each.examples.get("contradicting_pair", ()),
    )  # fmt: skip
    findings += make_finding(
        "equal_responses", kind, config, count=equal, share=equal / rows,
        text=f"data.{kind}: {equal} of {each.num_rows} pairs have the same response twice and were left out; two "
        f"different responses are needed; look how the pairs were made",
        examples=each.examples.get("equal_responses", ()),
    )  # fmt: skip
    return findings


def _leak_findings(
    kind: Kind, each: CheckedRecords, every_train: Sequence[Record], config: ChecksConfig
) -> list[Finding]:
    leaks = find_leaks(each.held_out, every_train, num_words=config.leakage_words)
    findings: list[Finding] = []
    for check, found, what in (
        ("leakage", [leak for leak in leaks if leak.is_exact], "are also trained on"),
        (
            "near_leakage",
            [leak for leak in leaks if not leak.is_exact],
            f"stand in training text, half of their runs of {config.leakage_words} words or more",
        ),
    ):
        findings += make_finding(
            check, kind, config, count=len(found), share=len(found) / max(len(each.held_out), 1),  # type: ignore[arg-type]
            text=f"data.{kind}: {len(found)} of {len(each.held_out)} held-out records have prompts that {what}; "
            f"prompts that are new to the model are needed, or the evaluation flatters; split by conversation or "
            f"topic, and read the held-out figures with that in mind",
            examples=tuple(
                shown(prompt_text(each.held_out[leak.index].prompt), _SHOWN_CHARS) for leak in found[:_NUM_EXAMPLES]
            ),
        )  # fmt: skip
    return findings
