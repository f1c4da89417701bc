"""When a run counts as collapsed, what the tables of `benchmarks.gold` say, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gold import check_config, recorded_results, run_arguments
from benchmarks.gold_results import (
    EVALUATION_METRICS,
    collapse_reasons,
    mean_error,
    plot,
    read_result,
    run_table,
    summary_table,
)
from data.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def result(seed: int = 0, kl_coef: float = 0.1, **evaluation: float | None) -> dict[str, Any]:
    """A run that did well, but for what is given (with `_` for `/`, the first one)."""
    figures: dict[str, float | None] = dict.fromkeys(EVALUATION_METRICS, 0.5)
    figures |= {
        "gold/before": 0.1, "gold/after": 0.6, "gold/gain": 0.5, "gold/gain_low": 0.4, "gold/gain_high": 0.6,
        "distinct_2/before": 0.8, "distinct_2/after": 0.6, "kl/mean": 3.0,
    }  # fmt: skip
    figures |= {name.replace("__", "/"): value for name, value in evaluation.items()}
    steps = [{"step": 1, "score": 0.0, "kl": 0.0}, {"step": 2, "score": 1.0, "kl": 1.5}]
    return {
        "seed": seed, "kl_coef": kl_coef, "run": "r", "status": "completed", "failed_stage": None, "steps": steps,
        "evaluation": figures, "settings": {},
    }  # fmt: skip


def test_a_run_that_did_well_has_not_collapsed() -> None:
    assert collapse_reasons(result()) == []


def test_no_clear_gain_is_no_collapse_but_a_clear_loss_is() -> None:
    assert collapse_reasons(result(gold__gain_low=-0.3, gold__gain_high=0.0)) == []
    assert collapse_reasons(result(gold__gain_low=-0.3, gold__gain_high=-0.01)) == ["gold fell"]


def test_less_than_half_the_diversity_of_sft_is_collapse() -> None:
    assert collapse_reasons(result(distinct_2__after=0.4)) == []
    assert collapse_reasons(result(distinct_2__after=0.39)) == ["distinct-2 halved"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_collapse(value: float | None) -> None:
    assert collapse_reasons(result(proxy__after=value)) == ["not finite: proxy/after"]


def test_a_ppo_step_without_a_finite_kl_is_collapse() -> None:
    found = result()
    found["steps"][1]["kl"] = None
    assert collapse_reasons(found) == ["not finite: kl of step 2"]


def test_a_failed_stage_is_collapse_and_has_no_figures_in_the_tables() -> None:
    failed = result(seed=1) | {"status": "failed", "failed_stage": "ppo", "steps": [], "evaluation": {}}
    assert collapse_reasons(failed) == ["ppo failed"]
    assert run_table([failed]).splitlines()[2] == (
        "| 1 | 0.1 | - | - | - | - | - [-, -] | - | - | - | - | - | - | - | ppo failed |"
    )
    # The mean is over the seed that has figures; the counts are over both.
    (line,) = summary_table([result(), failed]).splitlines()[2:]
    assert line == "| 0.1 | 2 | 0.50 | 0.50 | 0.50 | 3.00 | 0.75 | 1 of 2 | 1 of 2 |"


def test_the_summary_is_by_coefficient_over_seeds() -> None:
    runs = [result(0, 0.2, gold__gain=0.2), result(1, 0.2, gold__gain=0.4), result(0, 0.05, gold__gain_low=-0.1)]
    lines = summary_table(runs).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| 0.05", "| 0.2"]
    # Mean 0.3; standard deviation sqrt(2 * 0.1^2 / 1) = 0.1414, over sqrt(2) seeds: 0.1.
    assert lines[1].split(" | ")[3] == "0.30 +- 0.10"
    assert [line.split(" | ")[-2] for line in lines] == ["0 of 1", "2 of 2"]


def test_mean_and_standard_error() -> None:
    # 1, 2, 3, 4: mean 2.5, variance 5/3, error sqrt(5/3/4) = 0.645.
    assert mean_error([1.0, 2.0, 3.0, 4.0]) == "2.50 +- 0.65"
    assert (mean_error([1.0]), mean_error([])) == ("1.00", "-")


def test_a_row_is_read_from_the_folder_of_a_run(tmp_path: Path) -> None:
    stages = [
        {"name": "sft", "status": "cached", "seconds": 1.0, "metrics": {}},
        {"name": "ppo", "status": "executed", "seconds": 2.5, "metrics": {}},
        {"name": "evaluation", "status": "executed", "seconds": 3.5, "metrics": {"gold/gain": 0.25, "other": 1.0}},
    ]
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed", "stages": stages}))
    (tmp_path / "ppo").mkdir()
    row = {"step": 1, "objective/scores": -0.5, "objective/kl": None, "rollout/response_length": 9.0}
    (tmp_path / "ppo" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    found = read_result(tmp_path, seed=3, kl_coef=0.2)
    assert (found["seed"], found["kl_coef"], found["run"]) == (3, 0.2, tmp_path.name)
    assert (found["status"], found["failed_stage"]) == ("completed", None)
    assert found["seconds"] == {"ppo": 2.5, "evaluation": 3.5}
    assert found["steps"] == [{"step": 1, "score": -0.5, "kl": None, "response_length": 9.0, "entropy": None}]
    assert found["evaluation"]["gold/gain"] == 0.25
    assert found["evaluation"]["gold/after"] is None  # not there, so it counts as not finite
    assert "other" not in found["evaluation"]


def test_rows_of_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    settings = {"config": "quickstart.yaml", "sha256": "0", "set": ["ppo.steps=5"]}
    assert recorded_results(path, settings) == []
    path.write_text(json.dumps(result() | {"settings": settings}) + "\n")
    assert len(recorded_results(path, settings)) == 1
    with pytest.raises(ConfigError, match="seed 0, coefficient 0.1 was measured with .*give another folder with --out"):
        recorded_results(path, settings | {"set": []})
    with pytest.raises(ConfigError, match="all rows need the same"):  # the file was edited in between
        recorded_results(path, settings | {"sha256": "1"})


def test_a_configuration_without_gold_is_refused() -> None:
    config = ROOT / "configs" / "smoke.yaml"
    check_config(config, [])
    with pytest.raises(ConfigError, match="evaluation.gold is not set.*set it to a rule"):
        check_config(config, ["evaluation.gold=null"])


def test_seed_and_coefficient_win_over_the_other_settings() -> None:
    found = run_arguments(Path("c.yaml"), ["seed=9", "ppo.steps=2"], Path("out"), "name", seed=1, kl_coef=0.05)
    assert found[:6] == ["run", "c.yaml", "--run", "name", "--output-dir", "out"]
    assert found[7::2] == ["seed=9", "ppo.steps=2", "seed=1", "ppo.kl_coef=0.05"]
    assert set(found[6::2]) == {"--set"}


def test_the_plot_has_a_dot_a_run_in_each_panel() -> None:
    failed = result(2) | {"status": "failed", "failed_stage": "ppo", "steps": [], "evaluation": {}}
    drawn = plot([result(0, 0.05), result(0, 0.1), failed])
    # Filled dots of radius 4.5: two runs in two panels, and three of the legend.
    assert drawn.count('r="4.5"') - drawn.count('fill="#fff" stroke') == 2 * 2 + 3
    assert drawn.count("<polyline") == 2  # the failed run has no steps
