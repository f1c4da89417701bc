"""The report of all checks: levels, overruling, and the same text every time."""

import json
from typing import Any

import pytest

from data.quality.config import ChecksConfig
from data.quality.languages import languages_of
from data.quality.report import CheckedRecords, QualityReport, check_records
from data.schema import Demonstration, Kind, PreferencePair, PromptRecord

SENTENCES = [
    f"Topic {number}: please explain how item {number * 7} relates to item {number * 11} of list {number}"
    for number in range(200)
]


def report(kind: Kind = "preferences", checks: dict[str, Any] | None = None, **given: Any) -> QualityReport:
    """The report of one kind."""
    values: dict[str, Any] = {"train": [], "held_out": [], "num_rows": 200, "reasons": {}} | given
    return check_records({kind: CheckedRecords(**values)}, ChecksConfig.model_validate(checks or {}))


def levels(found: QualityReport) -> dict[str, str]:
    """Level by check."""
    return {finding.check: finding.level for finding in found.findings}


def pairs(chosen: str, rejected: str) -> list[PreferencePair]:
    """Pairs with distinct prompts."""
    return [
        PreferencePair(prompt=text, chosen=f"{chosen} {n}", rejected=f"{rejected} {n}")
        for n, text in enumerate(SENTENCES)
    ]


def test_clean_data_have_no_finding() -> None:
    mixed = [*pairs("yes", "not")[:100], *pairs("not", "yes")[100:]]
    found = report(train=mixed[:150], held_out=mixed[150:])
    assert found.findings == [] and found.kinds["preferences"].train == 150


def test_each_check_finds_what_it_is_for() -> None:
    clean = pairs("yes", "not")
    assert levels(report(train=clean, reasons={"duplicate": 4})) == {"duplicates": "warning"}
    assert levels(report(train=clean, reasons={"duplicate": 1})) == {"duplicates": "info"}
    assert levels(report(train=clean, reasons={"equal_responses": 50})) == {"equal_responses": "warning"}
    assert levels(report(train=clean, reasons={"contradicting_pair": 2})) == {"contradictions": "warning"}
    assert levels(report(train=clean, reasons={"contradicting_pair": 40})) == {"contradictions": "error"}
    assert levels(report(train=pairs("a longer answer", "no"))) == {"length_bias": "warning"}
    assert levels(report(train=clean[:150], held_out=clean[140:])) == {"leakage": "error"}
    long = " ".join(SENTENCES[:2])
    copied = [Demonstration(prompt="q", response=f"As you said, {long}")]
    held_out = [PromptRecord(prompt=long)]
    assert levels(report("prompts", train=copied, held_out=held_out)) == {"near_leakage": "warning"}
    mailed = [PromptRecord(prompt=f"{text}, mail a{n}@example.org") for n, text in enumerate(SENTENCES)]
    assert levels(report("prompts", train=mailed)) == {"personal_data": "warning"}
    repeated = [PromptRecord(prompt=text + end) for text in SENTENCES for end in ("", "!")]
    assert levels(report("prompts", train=repeated)) == {"near_duplicates": "warning"}
    assert report("prompts", train=repeated).kinds["prompts"].near_duplicates == 200


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_a_level_is_overruled_where_there_is_something_to_find(level: str) -> None:
    biased = pairs("a longer answer", "no")
    assert levels(report(train=biased, checks={"levels": {"length_bias": level}})) == {"length_bias": level}
    assert levels(report(train=biased, checks={"levels": {"length_bias": "off"}})) == {}
    assert levels(report(train=pairs("yes", "not"), checks={"levels": {"length_bias": level}})) == {}


def test_findings_have_three_parts_the_worst_first_and_the_same_text_every_time() -> None:
    clean = pairs("a longer answer", "no")
    found = report(train=clean[:150], held_out=clean[140:], reasons={"duplicate": 1})
    assert [finding.level for finding in found.findings] == ["error", "warning", "info"]
    assert all(finding.text.count(";") == 2 for finding in found.findings)
    assert found.to_json() == report(train=clean[:150], held_out=clean[140:], reasons={"duplicate": 1}).to_json()
    assert json.loads(found.to_json())["levels"] == {"error": 1, "warning": 1, "info": 1}


def test_lengths_are_counted_as_asked() -> None:
    records = {"prompts": CheckedRecords([PromptRecord(prompt="one two three")], [], 1, {})}
    words = check_records(records, ChecksConfig(), measure=lambda texts: [len(t.split()) for t in texts], unit="words")  # type: ignore[arg-type]
    assert words.unit == "words" and words.kinds["prompts"].lengths["prompt"].percentiles["50"] == 3


def test_languages() -> None:
    texts = [
        "The quick brown fox jumps over the lazy dog.", "Der schnelle braune Fuchs springt über den faulen Hund.",
        "今天天气很好，我们去公园散步吧。", "كيف حالك اليوم؟ أتمنى أن تكون بخير", "\U0001f600 ok",
    ]  # fmt: skip
    assert dict(languages_of(texts, 10)) == {"en": 1, "de": 1, "zh": 1, "ar": 1, "unclear": 1}
    assert sum(languages_of(texts, 3).values()) == 3 and languages_of([], 5) == {}
