"""The members of an ensemble of reward models: a killed stage goes on in the member where it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.contract import CheckpointSchedule
from stages.metrics import MetricsWriter
from tests.unit.stages.parts import Executed, run_quietly
from tests.unit.stages.test_resume import killed_after, rows, scramble


@pytest.mark.parametrize("every_steps, step", [(None, 25), (2, 27), (None, 51)])
def test_checklist_50_killed_in_any_member_the_artifact_is_the_same(
    ensembles: dict[str, Executed],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every_steps: int | None,
    step: int,
) -> None:
    """Without a schedule, too: what a finished member is worth is kept, and its rows with it."""
    whole = ensembles["adapters"]
    expected = rows(whole.spec)
    row = next(number for number, row in enumerate(expected, start=1) if row["step"] == step)
    spec = replace(
        whole.spec,
        stage_dir=tmp_path / "stage",
        store_dir=tmp_path / "store",
        checkpoints=CheckpointSchedule(every_steps=every_steps),
    )
    killed_after(spec, row, monkeypatch)
    scramble()
    written: list[int] = []
    _counted(written, monkeypatch)
    assert run_quietly(spec)["artifact"]["digest"] == whole.artifact.digest
    assert rows(spec) == expected
    assert step == 25 or min(written) > 25, "the first member is not trained again"


def _counted(written: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    write = MetricsWriter.write

    def counting(self: MetricsWriter, step: int, values: Any) -> None:
        written.append(step)
        write(self, step, values)

    monkeypatch.setattr(MetricsWriter, "write", counting)
