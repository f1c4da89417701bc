"""What `benchmarks.scaling` measures and says."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.scaling import Case, Cost, _parse, cost_table, make_job, plot, read_cost


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


def test_cases_differ_in_what_is_measured_alone() -> None:
    options = _parse(["--steps", "2"])
    small, large = (make_job(options, case, "base") for case in (Case(8, 24), Case(32, 96)))
    assert (large.batch_size, large.max_new_tokens) == (32, 96)
    assert small == replace(large, batch_size=8, max_new_tokens=24)
    for job in (small, large):
        config = job.ppo_config
        assert (config.steps, config.minibatch_size, config.microbatch_size) == (2, 8, 8)
        assert job.model.tuning.layers is not None and job.eos_token == "<jupyter_output>"


def test_the_plot_has_two_panels_for_each_table() -> None:
    drawn = plot([cost(8, 24, 2.0, 1.0), cost(32, 24, 6.0, 1.5)], [cost(8, 24, 2.0, 1.0)])
    assert drawn.count('class="title"') == 4
    assert drawn.count('r="4.5"') == 2 * 2 + 2 * 1
