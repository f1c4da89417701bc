"""Data at fault: exit code 2, before anything is trained, with a message of three parts."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data.errors import UserError
from pipeline.checks import check_inputs
from pipeline.cli import main
from pipeline.loading import load_config
from stages.run import StageSpec, run_stage
from tests.bad_inputs import (
    cases_data_files,
    cases_data_formats,
    cases_data_rows,
    cases_data_structure,
)
from tests.bad_inputs.data_case import DataCase

CASES: list[DataCase] = [
    *cases_data_files.CASES,
    *cases_data_structure.CASES,
    *cases_data_formats.CASES,
    *cases_data_rows.CASES,
]
MAX_PER_TEMPLATE = 8
_said: dict[str, str] = {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_data_is_refused(
    case: DataCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.checks.check_base", lambda *_: None)  # nothing but the data is at fault
    case.build(tmp_path)
    config = {"model": {"base": "./base"}, "data": case.data, "launch": {"device": "cpu"}}
    config |= {"sft": {}, "ppo": None, "evaluation": None, "reward_model": None, "output_dir": str(tmp_path / "out")}
    config |= case.sections
    Path("c.yaml").write_text(json.dumps(config), encoding="utf-8")
    if case.by == "validate":
        assert main(["validate", "c.yaml"]) == 2
        message = capsys.readouterr().err
    else:
        check_inputs(load_config(Path("c.yaml"), []), tmp_path)
        message = run_data_stage(case, tmp_path)
    assert "Traceback" not in message
    places = [message.find(part) for part in (case.found, case.needed, case.remedy)]
    assert -1 not in places and places == sorted(places), message
    assert not list(tmp_path.glob("out/*/run.json")), "nothing may have started"
    _said[case.name] = template(message, tmp_path)


def run_data_stage(case: DataCase, folder: Path) -> str:
    """The message with which the stage ends; it leaves no artifact."""
    spec = StageSpec(
        stage="data", config=dict(case.data), model={}, inputs={}, stage_dir=folder / "run", store_dir=folder / "store",
        seed=0, device="cpu", fingerprint="f" * 64, config_dir=folder,
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        run_stage(spec, lambda done, total, what: None)
    assert not list((folder / "store").iterdir())
    return str(error.value)


def template(message: str, folder: Path) -> str:
    """A message without what differs from case to case: paths, names, values, numbers."""
    text = message.replace(f"{folder}/", "").replace(str(folder), "")
    for varying in (
        r"`[^`]*`",
        r"'[^']*'",
        r"\([^()]*(\([^()]*\)[^()]*)*\)",
        r"data\.[a-z_.]+",
        r"\S*[./]\S*:?",
        r"\d+",
    ):
        text = re.sub(varying, "_", text)
    return text


def test_there_are_ninety_cases_of_distinct_names() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 90


def test_no_message_serves_for_more_than_eight_cases() -> None:
    assert len(_said) in (0, len(CASES)), "runs after the cases of the same session"
    most = Counter(_said.values()).most_common(1)
    assert not most or most[0][1] <= MAX_PER_TEMPLATE, [name for name, said in _said.items() if said == most[0][0]]
