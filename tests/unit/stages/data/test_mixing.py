"""Several sources of a kind: by weight, without leaks, each record with the name of its source."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.schema import Demonstration, PreferencePair, PromptRecord, Record, read_split
from stages.data.split import thin_out
from tests.unit.stages.data.test_data_stage import pairs, run, write


def numbered(count: int, prefix: str) -> list[Record]:
    """Records with distinct prompts."""
    return [PromptRecord(prompt=f"{prefix}{number}") for number in range(count)]


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        ({"a": 100, "b": 100}, {"a": 1.0, "b": 1.0}, {"a": 100, "b": 100}),
        ({"a": 100, "b": 300}, {"a": 1.0, "b": 1.0}, {"a": 100, "b": 100}),
        ({"a": 100, "b": 300}, {"a": 3.0, "b": 1.0}, {"a": 100, "b": 33}),
        ({"a": 10, "b": 300}, {"a": 1.0, "b": 9.0}, {"a": 10, "b": 90}),
        ({"a": 7, "b": 7, "c": 7}, {"a": 0.1, "b": 0.2, "c": 0.7}, {"a": 1, "b": 2, "c": 7}),
        ({"a": 5, "b": 0}, {"a": 1.0, "b": 1.0}, {"a": 0, "b": 0}),
    ],
)
def test_as_many_as_the_weights_allow(
    counts: dict[str, int], weights: dict[str, float], expected: dict[str, int]
) -> None:
    found = thin_out({name: numbered(count, name) for name, count in counts.items()}, weights)
    assert {name: len(rows) for name, rows in found.items()} == expected
    for name, rows in found.items():
        assert rows == [record for record in numbered(counts[name], name) if record in rows], "the order stays"


def test_a_smaller_weight_keeps_a_part_of_what_a_larger_one_does() -> None:
    records = {"a": numbered(100, "a"), "b": numbered(100, "b")}
    some = thin_out(records, {"a": 1.0, "b": 4.0})["a"]
    more = thin_out(records, {"a": 2.0, "b": 4.0})["a"]
    assert (len(some), len(more)) == (25, 50) and set(some) < set(more)
    assert some != records["a"][:25], "chosen by a hash, not by place"


def test_the_pairs_of_a_ranking_count_as_one_record() -> None:
    ranked: list[Record] = [
        PreferencePair(prompt=f"r{n}", chosen=f"a{m}", rejected="b", weight=1 / 3) for n in range(20) for m in range(3)
    ]
    plain: list[Record] = [PreferencePair(prompt=f"p{n}", chosen="a", rejected="b") for n in range(10)]
    found = thin_out({"plain": plain, "ranked": ranked}, {"plain": 1.0, "ranked": 1.0})
    assert found["plain"] == plain
    counts = Counter(record.prompt for record in found["ranked"])
    assert len(counts) == 10 and set(counts.values()) == {3}


def test_a_mix_in_the_stage(tmp_path: Path) -> None:
    mix = {
        "web": {"path": write(tmp_path / "web.jsonl", pairs(range(0, 300))), "weight": 1},
        "own": {"path": write(tmp_path / "own.jsonl", pairs(range(250, 400))), "weight": 1, "held_out": 0.2},
    }
    output, folder = run(tmp_path, {"max_skipped_share": 0.5, "preferences": {"mix": mix}})
    train, held_out = (read_split(folder, "preferences", split) for split in ("train", "held_out"))
    metrics = output.metrics
    # 50 of `web` are `own`'s too: the first by name, `own`, has them.
    assert metrics["skipped/preferences_duplicate"] == metrics["preferences/duplicates"] == 50
    assert {pair.source for pair in train} == {pair.source for pair in held_out} == {"own", "web"}
    assert {pair.prompt for pair in train}.isdisjoint(pair.prompt for pair in held_out)
    counts = {name: sum(pair.source == name for pair in train) for name in mix}
    assert counts["own"] == counts["web"] == metrics["preferences/mix/own"] == metrics["preferences/mix/web"]
    assert metrics["preferences/mix/own_thinned_out"] == 0 < metrics["preferences/mix/web_thinned_out"]
    # Derived kinds follow: same names, same weights.
    demonstrations = read_split(folder, "demonstrations", "train")
    assert demonstrations == [
        Demonstration(prompt=pair.prompt, response=pair.chosen, source=pair.source) for pair in train
    ]
    assert set(output.notes["source_digests"]) == {"preferences.mix.own", "preferences.mix.web"}


def test_without_weights_all_rows_are_used(tmp_path: Path) -> None:
    mix = {
        "a": {"path": write(tmp_path / "a.jsonl", pairs(range(10))), "held_out": 0},
        "b": {"path": write(tmp_path / "b.jsonl", pairs(range(10, 40))), "held_out": 0},
    }
    _, folder = run(tmp_path, {"preferences": {"mix": mix}})
    assert [pair.prompt for pair in read_split(folder, "preferences", "train")] == [f"q{n}" for n in range(40)]


def test_sources_that_contradict_each_other_lose_the_pair(tmp_path: Path) -> None:
    turned = [{"prompt": "q3", "chosen": "bad 3", "rejected": "good 3"}, *pairs(range(100, 140))]
    mix = {
        "a": {"path": write(tmp_path / "a.jsonl", pairs(range(40))), "held_out": 0},
        "b": {"path": write(tmp_path / "b.jsonl", turned), "held_out": 0},
    }
    output, folder = run(tmp_path, {"preferences": {"mix": mix}})
    assert output.metrics["skipped/preferences_contradicting_pair"] == 2
    assert "q3" not in {pair.prompt for pair in read_split(folder, "preferences", "train")}


def test_messages_name_the_part(tmp_path: Path) -> None:
    mix = {"a": {"path": write(tmp_path / "a.jsonl", pairs(range(9)))}, "b": {"path": str(tmp_path / "no.jsonl")}}
    with pytest.raises(DataError, match=r"data\.preferences\.mix\.b: there is no such file"):
        run(tmp_path, {"preferences": {"mix": mix}})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"path": "x", "mix": {"a": {"path": "y"}}}, "path=x is set beside `mix`"),
        ({"mix": {"a b": {"path": "y"}}}, "mix names a source 'a b'"),
        ({"mix": {"a": {"path": "y", "weight": 1}, "b": {"path": "z"}}}, "mix gives no weight to b"),
        ({"mix": {"a": {}}}, "give exactly one of `path`"),
        ({"path": "x", "streaming": True}, "only data sets of the hub have a streaming"),
    ],
)
def test_mixes_that_cannot_be(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        SourceConfig.model_validate(settings)
