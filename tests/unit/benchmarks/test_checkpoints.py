"""The arithmetic and the reading of the benchmark of checkpoints."""

from pathlib import Path

import pytest

from benchmarks.checkpoints import Cost, read_cost, read_remembering, table
from stages.checkpoint import Checkpoints
from stages.contract import CheckpointSchedule
from stages.ranks import Ranks


def test_the_share_is_the_median_by_the_interval() -> None:
    cost = Cost("ppo", 10.0, (3.0, 1.0, 1.2))
    assert cost.percent(10.0) == pytest.approx(0.2)  # 1.2 of 600 s
    assert "| ppo | 3 | 10.0 | 1.200 (1.000-3.000) | 0.200 |" in table([cost], 10.0)


def test_it_reads_what_checkpoints_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path / "stage", "f", CheckpointSchedule())
    with caplog.at_level("INFO", logger="stages.checkpoint"):
        for step in (1, 2):
            checkpoints.write(step, lambda folder: (folder / "a").write_bytes(b"x" * 2**20) and None, Ranks())
    folder = tmp_path / "run" / "sft"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("\n".join(["started", *caplog.messages]), encoding="utf-8")
    cost = read_cost(tmp_path / "run", "sft")
    assert cost.stage == "sft" and cost.mib == 1.0 and len(cost.seconds) == 2
    (folder / "log.txt").write_text("started", encoding="utf-8")
    with pytest.raises(ValueError, match="no checkpoint was written"):
        read_cost(tmp_path / "run", "sft")


def test_it_reads_what_remembering_takes(tmp_path: Path) -> None:
    (tmp_path / "ppo").mkdir()
    rows = [
        f'{{"time/remember_seconds": {held}, "time/step_seconds": {step}}}' for held, step in ((1, 4), (3, 9), (2, 5))
    ]
    (tmp_path / "ppo" / "metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert read_remembering(tmp_path) == (2, 5)
