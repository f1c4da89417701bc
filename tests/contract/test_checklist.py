"""docs/checklist.md, the tests named after its lines and the list of faults agree."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.faults import LINES, PACKAGES, Fault, checklist_tests, is_not_applicable, load_faults, numbers_of

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (\d\d) \| (.+?) \| (.+) \|$", re.MULTILINE)


def rows() -> dict[int, tuple[str, str]]:
    """What must hold and the tests, of each line of the table."""
    text = (ROOT / "docs" / "checklist.md").read_text(encoding="utf-8")
    found = [(int(number), (what, tests)) for number, what, tests in ROW.findall(text)]
    assert len(found) == len(dict(found)), "a line is there twice"
    return dict(found)


def test_the_table_has_every_line_once_and_in_order() -> None:
    assert list(rows()) == list(LINES)
    assert all(len(what) > 15 and what.endswith(".") for what, _ in rows().values())


def test_the_table_names_the_files_that_hold_the_tests_of_each_line() -> None:
    for number, tests in checklist_tests().items():
        expected = {test.split("::")[0].removeprefix("tests/") for test in tests}
        assert set(re.findall(r"`([^`]+)`", rows()[number][1])) == expected, f"line {number:02d}"
        assert tests, f"line {number:02d}"


def test_every_line_with_a_test_has_a_fault() -> None:
    faults = load_faults()
    for number, tests in checklist_tests().items():
        if tests and not is_not_applicable(tests):
            assert any(number in fault.lines for fault in faults), f"line {number:02d}"


def test_every_fault_is_in_our_code_and_says_what_it_is() -> None:
    for fault in load_faults():
        fault.mutated()
        assert fault.file.split("/")[0] in PACKAGES and set(fault.lines) <= set(LINES)
        assert 10 < len(fault.what) < 120 and not fault.what.endswith(".")


def test_a_name_may_carry_several_lines() -> None:
    assert numbers_of("test_checklist_16_48_the_judge_stays") == (16, 48)
    assert numbers_of("test_checklist_07_x") == (7,)
    assert numbers_of("test_checklist_of_something") == () == numbers_of("test_other_07_x")


CHAT = {"lines": (6,), "file": "data/chat.py", "what": "for a test", "test": "tests/unit/data"}
BEFORE = "return kept, len(prompt_ids) - len(kept)"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("no such line", "", "`before` is there 0 times; exactly once is needed"),
        ("tokenizer", "", r"`before` is there \d+ times; exactly once is needed"),
        (BEFORE, "return = kept", "the file is no Python"),
        (BEFORE, f"{BEFORE}  # why", "`after` changes nothing"),
    ],
)
def test_a_fault_that_is_none_is_refused(before: str, after: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fault(**CHAT, before=before, after=after).mutated()  # type: ignore[arg-type]


def test_a_fault_in_foreign_code_is_refused() -> None:
    with pytest.raises(ValueError, match="faults go into pipeline, stages, rewards, data only"):
        Fault((6,), "tests/tiny.py", before="import", after="", what="for a test").mutated()


def test_only_the_assertion_of_a_test_notices_a_fault() -> None:
    """In a process of its own, which may be forked."""
    importing = "from data.errors import DataError, ModelError\n"
    faults = {
        "survived": {"before": BEFORE, "after": "return kept, -len(kept) + len(prompt_ids)"},
        "killed": {"before": BEFORE, "after": "return kept, len(kept)"},
        "broken in the call": {"before": BEFORE, "after": "return kept, len(prompt_ids) - len(no_such_name)"},
        "broken at import": {"before": importing, "after": f"{importing}import no_such_module\n"},
    }
    program = (
        "import json, sys, torch\n"  # so that no child has to
        "from tests.mutation.faults import Fault, checklist_tests, judge\n"
        "faults = [Fault(**entry) for entry in json.load(sys.stdin)]\n"
        "outcomes = judge(faults, checklist_tests(), [6], 2)\n"
        "print('verdicts', *(outcome.verdict for outcome in outcomes))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([{**CHAT, **fault} for fault in faults.values()]),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    verdicts = [name.split()[0] for name in faults]
    assert found.stdout.splitlines()[-1].split() == ["verdicts", *verdicts], found.stdout + found.stderr
