"""Rows that are left out: which, why, where they are kept, and when they are too many."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.errors import DataError
from data.formats import parse_demonstrations, parse_preferences, parse_prompts
from data.quarantine import REASONS, Skipped, check_share, write_quarantine
from data.rows import Row
from data.schema import PreferencePair
from tests.unit.stages.data.test_data_stage import pairs, run, write

PACKAGE = Path(__file__).resolve().parents[3] / "data"


def rows(*values: dict[str, Any]) -> list[Row]:
    """Rows of a file."""
    return [Row(value, f"/home/me/f.jsonl:{number}", f"f.jsonl:{number}") for number, value in enumerate(values, 1)]


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    """A row of preferences."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def skipped(parsed: Any) -> list[tuple[str, str, str]]:
    """Place, reason and note of what was left out."""
    return [(each.row.place, each.reason, each.note) for each in parsed.quarantine]


def test_the_first_of_equal_rows_stays() -> None:
    parsed = parse_preferences(rows(pair("q", "a", "b"), pair("p", "a", "b"), pair("q", "a", "b")), name="x")
    assert [record.prompt for record in parsed.records] == ["q", "p"]
    assert skipped(parsed) == [("f.jsonl:3", "duplicate", "of f.jsonl:1")]
    assert (parsed.num_rows, parsed.num_repeats) == (3, 0)


def test_all_sides_of_a_contradiction_are_left_out() -> None:
    parsed = parse_preferences(
        rows(
            pair("q", "a", "b"),
            pair("q", "c", "a"),
            pair(" q", "b ", "a"),  # the first one the other way round
            pair("q", "a", "b", margin=2.0),  # says the first one again, and is no duplicate
            pair("other", "b", "a"),
        ),
        name="x",
    )
    assert parsed.records == [
        PreferencePair(prompt="q", chosen="c", rejected="a"),
        PreferencePair(prompt="other", chosen="b", rejected="a"),
    ]
    assert skipped(parsed) == [
        ("f.jsonl:1", "contradicting_pair", "by f.jsonl:3"),
        ("f.jsonl:3", "contradicting_pair", "by f.jsonl:1"),
        ("f.jsonl:4", "contradicting_pair", "by f.jsonl:3"),
    ]


def test_several_pairs_of_a_prompt_are_no_defect_of_prompts_or_demonstrations() -> None:
    same = rows(pair("q", "a", "b"), pair("q", "a", "c"), pair("p", "a", "b"))
    prompts = parse_prompts(same, name="x")
    assert [record.prompt for record in prompts.records] == ["q", "p"]
    assert (prompts.quarantine, prompts.num_repeats) == ([], 1)
    demonstrations = parse_demonstrations(same, name="x")
    assert (len(demonstrations.records), demonstrations.quarantine, demonstrations.num_repeats) == (2, [], 1)


def test_every_reason_says_what_is_needed_and_what_to_do() -> None:
    modules = ("conversations", "drafts", "records", "parsed")
    source = "".join((PACKAGE / f"{name}.py").read_text() for name in modules)
    raised = set(re.findall(r'(?:SkippedRow\(|_require\([^,]+, |Skipped\([^"\n]+, )"(\w+)"', source))
    assert raised == set(REASONS) and len(raised) >= 20


def bad(count: int) -> list[Skipped]:
    """Skipped rows of two reasons."""
    return [
        Skipped(row, "empty_prompt" if number else "no_turns") for number, row in enumerate(rows(*[{"a": 1}] * count))
    ]


@pytest.mark.parametrize(("num_rows", "share", "stops"), [(100, 0.05, False), (99, 0.05, True), (5, 1.0, False)])
def test_a_share_is_allowed_and_more_is_not(tmp_path: Path, num_rows: int, share: float, stops: bool) -> None:
    path = tmp_path / "q.jsonl"
    if not stops:
        check_share(bad(5), num_rows, share, name="data.prompts", quarantine=path)
        assert not path.exists()
        return
    with pytest.raises(DataError) as error:
        check_share(bad(5), num_rows, share, name="data.prompts", quarantine=path)
    assert str(error.value) == (
        "data.prompts: 5 of 99 rows would be skipped (empty_prompt: 4, no_turns: 1): /home/me/f.jsonl:1 no_turns, "
        "/home/me/f.jsonl:2 empty_prompt, /home/me/f.jsonl:3 empty_prompt; a prompt with text is needed; fill the "
        f"prompts, or read text without prompts with `format: text` (all of them are in {path}), or raise "
        "`data.max_skipped_share` from 0.05"
    )
    assert len(path.read_text().splitlines()) == 5


def test_no_row_may_be_skipped_at_zero(tmp_path: Path) -> None:
    check_share([], 9, 0.0, name="data.prompts", quarantine=tmp_path / "q")
    with pytest.raises(DataError, match="1 of 9 rows would be skipped"):
        check_share(bad(1), 9, 0.0, name="data.prompts", quarantine=tmp_path / "q")


def test_a_folder_that_cannot_be_written_does_not_hide_the_defect(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"1 of 2 rows would be skipped .*they could not be written to .*: "):
        check_share(bad(1), 2, 0.0, name="data.prompts", quarantine=tmp_path / "file" / "q.jsonl")


def test_lines_hold_place_reason_and_row_and_no_path_of_this_machine(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    values = {
        "text": "سلام \ud83d",
        "when": datetime.date(2026, 1, 2),
        "raw": b"\xff",
        "nan": float("nan"),
        "deep": deep,
    }
    write_quarantine(tmp_path / "q.jsonl", [("prompts", Skipped(rows(values)[0], "broken_unicode", "note"))])
    content = (tmp_path / "q.jsonl").read_bytes()
    assert "سلام".encode() in content and content.endswith(b"\n") and b"/home/me" not in content
    line = json.loads(content)
    assert (line["source"], line["place"], line["reason"], line["note"]) == (
        "prompts", "f.jsonl:1", "broken_unicode", "note",
    )  # fmt: skip
    assert line["row"] | {"deep": 0} == {
        "text": "سلام \ud83d", "when": "2026-01-02", "raw": "b'\\\\xff'", "nan": "nan", "deep": 0,
    }  # fmt: skip
    assert "(nested too deeply to show)" in json.dumps(line["row"]["deep"])
    write_quarantine(tmp_path / "none.jsonl", [])
    assert not (tmp_path / "none.jsonl").exists()


def test_the_stage_keeps_skipped_rows_in_its_artifact(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = [*pairs(range(40)), {"prompt": "x", "chosen": "same", "rejected": "same "}, pairs(range(1))[0]]
    contents = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        path = write(tmp_path / place / "p.jsonl", source)
        with caplog.at_level("INFO"):
            output, folder = run(tmp_path / place, {"preferences": {"path": path}})
        contents.append((folder / "quarantine.jsonl").read_bytes())
    assert contents[0] == contents[1]
    assert [json.loads(line) for line in contents[0].splitlines()] == [
        {"source": "preferences", "place": "p.jsonl:41", "reason": "equal_responses", "row": source[40]},
        {
            "source": "preferences",
            "place": "p.jsonl:42",
            "reason": "duplicate",
            "note": "of p.jsonl:1",
            "row": source[0],
        },
    ]
    assert output.metrics["rows/read"] == 42 and output.metrics["rows/skipped"] == 2
    assert output.metrics["skipped/preferences_equal_responses"] == output.metrics["skipped/preferences_duplicate"] == 1
    assert "2 of 42 rows skipped" in caplog.text


def test_nothing_skipped_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quarantine.jsonl").write_text("of an earlier try\n")
    output, folder = run(tmp_path, {"preferences": {"path": write(tmp_path / "p.jsonl", pairs(range(9)))}})
    assert not list(tmp_path.rglob("quarantine.jsonl")) and output.metrics["rows/skipped"] == 0


@pytest.mark.parametrize("all_bad", [True, False])
def test_a_stage_that_stops_leaves_the_rows_in_its_folder(tmp_path: Path, all_bad: bool) -> None:
    empty = [{"prompt": "x", "chosen": "", "rejected": "b"}] * 3
    path = write(tmp_path / "p.jsonl", empty if all_bad else [*pairs(range(9)), *empty])
    left = tmp_path / "out" / "quarantine.jsonl"
    left.parent.mkdir()
    left.write_text("of an earlier try\n" * 9)
    with pytest.raises(DataError, match=re.escape(f"all of them are in {left}")):
        run(tmp_path, {"preferences": {"path": path}})
    assert [json.loads(line)["reason"] for line in left.read_text().splitlines()] == ["empty_response"] * 3
    assert not list((tmp_path / "out" / "payload").iterdir())


def test_a_limit_beyond_the_rows_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, {"preferences": {"path": write(tmp_path / "p.jsonl", pairs(range(9))), "limit": 10}})
    assert "data: preferences: limit 10, but there are only 9 rows" in caplog.text
