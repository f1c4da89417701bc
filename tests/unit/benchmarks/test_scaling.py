"""What `benchmarks.scaling` measures and says."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import Case, Cost, cost_table, plot, read_cost, rerun_arguments


def row(seconds: float, *, length: float, peak: float) -> dict[str, Any]:
    times = {"generate": 0.5, "score": 0.1, "experience": 0.15, "update": 0.25}
    parts = {f"time/{part}_seconds": share * seconds for part, share in times.items()}
    return {"time/step_seconds": seconds, "rollout/response_length": length, "memory/peak_gib": peak, **parts}


def test_the_first_step_counts_for_memory_alone() -> None:
    rows = [row(100.0, length=90.0, peak=1.5), row(4.0, length=10.0, peak=1.25), row(2.0, length=20.0, peak=1.25)]
    cost = read_cost(Case(12, 24), rows)
    assert cost.step_seconds == 3.0
    assert cost.episodes_per_second == 4.0
    assert cost.response_tokens == 15.0
    assert cost.parts == pytest.approx({"generate": 1.5, "score": 0.3, "experience": 0.45, "update": 0.75})
    assert cost.peak_gib == 1.5


def cost(batch: int, tokens: int, seconds: float, gib: float) -> Cost:
    parts = dict.fromkeys(("generate", "score", "experience", "update"), 0.0)
    return Cost(Case(batch, tokens), seconds, parts, 10.0, gib)


def test_growth_is_in_units_of_the_first_case() -> None:
    lines = cost_table([cost(8, 24, 2.0, 1.0), cost(32, 24, 6.0, 1.5)]).splitlines()
    # 32 episodes in 6 seconds, 10 tokens each; three times the step, half as much memory again.
    assert lines[3] == "| 32 | 24 | 10.0 | 6.00 | 0.00 | 0.00 | 0.00 | 0.00 | 3.00 | 5.33 | 53.3 | 1.50 | 1.50 |"


def test_a_case_is_a_rerun_in_a_process_of_its_own() -> None:
    found = rerun_arguments(Path("/x/outputs/quickstart-1"), Case(32, 96), "new", steps=3, minibatch=8)
    assert found[:8] == ["rerun", "ppo", "--run", "quickstart-1", "--name", "new", "--output-dir", "/x/outputs"]
    assert set(found[9::2]) == {
        "launch.mode=process", "tracking.mode=disabled", "ppo.steps=3", "ppo.batch_size=32", "ppo.minibatch_size=8",
        "ppo.microbatch_size=8", "ppo.rollout.max_new_tokens=96",
    }  # fmt: skip


def test_the_plot_has_two_panels_for_each_table() -> None:
    drawn = plot([cost(8, 24, 2.0, 1.0), cost(32, 24, 6.0, 1.5)], [cost(8, 24, 2.0, 1.0)])
    assert drawn.count('class="title"') == 4
    assert drawn.count('r="4.5"') == 2 * 2 + 2 * 1
