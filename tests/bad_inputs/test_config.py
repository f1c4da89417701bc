"""Configurations at fault: exit code 2 with the whole message, before anything is made."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main
from tests.bad_inputs import cases_config_models, cases_config_ppo
from tests.bad_inputs.config_case import Case
from tests.bad_inputs.test_data import MAX_PER_TEMPLATE, template

CASES: list[Case] = [*cases_config_models.CASES, *cases_config_ppo.CASES]
RIGHT = {
    "model": {"base": "./base"},
    "data": {"demonstrations": {"path": "d.jsonl"}, "preferences": {"path": "p.jsonl"}},
    "launch": {"device": "cpu"},
}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "c.yaml: data: missing"),
    "a list": (
        b"- model\n- data\n",
        "c.yaml: the top level is a list, must be `key: value` lines; start from a file in",
    ),
    "a word": (b"hello\n", "c.yaml: the top level is a str, must be `key: value` lines; start from a file in configs/"),
    "a tab": (b"model:\n\tbase: x\n", "line 2"),
    "a bracket that stays open": (b"model: {base: x\n", "c.yaml"),
    "the same key twice": (b"seed: 1\nseed: 2\n", "seed"),
    "a Python object": (b"seed: !!python/object/apply:os.system ['touch trace']\n", "python/object"),
    "text in another encoding": (b"model: {base: \xff\xfe}\n", "c.yaml"),
    "aliases of aliases": (BOMB.encode(), "c.yaml: a: unknown key"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data, and a configuration that is right but for its base, which is not looked at."""
    rows = [{"prompt": f"The tea {number}", "response": " was warm."} for number in range(40)]
    pairs = [{"prompt": row["prompt"], "chosen": " was warm.", "rejected": " was cold."} for row in rows]
    for name, values in (("d.jsonl", rows), ("p.jsonl", pairs)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, values)) + "\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(RIGHT), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.checks.check_base", lambda *_: None)
    return tmp_path


def options(case: Case) -> list[str]:
    return [part for option in case.options for part in ("--set", option)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_configuration_is_refused(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert main(["validate", "c.yaml", *options(case)]) == 2
    assert capsys.readouterr().err.strip().replace(f"{folder}/", "") == case.message
    assert sorted(folder.rglob("*")) == before, "nothing is made"


def test_the_configuration_that_the_cases_change_is_right(folder: Path) -> None:
    assert main(["validate", "c.yaml"]) == 0


def test_run_says_what_validate_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in CASES[::10]:
        assert main(["run", "c.yaml", *options(case)]) == 2
        assert capsys.readouterr().err.strip().replace(f"{folder}/", "") == case.message
    assert not (folder / "outputs").exists()


def test_no_message_serves_for_more_than_eight_configurations(folder: Path) -> None:
    counts = Counter(template(case.message, folder) for case in CASES)
    assert {text: number for text, number in counts.items() if number > MAX_PER_TEMPLATE} == {}


def test_every_case_is_another(folder: Path) -> None:
    assert len({case.name for case in CASES}) == len({case.options for case in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration_is_refused(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = FILES[name]
    (folder / "c.yaml").write_bytes(content)
    assert main(["validate", "c.yaml"]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    assert not (folder / "trace").exists(), "nothing of the file was executed"


def test_a_path_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "cc.yaml"]) == 2
    assert "cc.yaml" in capsys.readouterr().err
    assert main(["validate", "."]) == 2
    assert "Traceback" not in capsys.readouterr().err
