"""What a run of `benchmarks.gold` left, when it counts as collapsed, and the tables and the plot of all runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.commands import read_json, read_rows
from benchmarks.conditions import Row, markdown_table
from benchmarks.svg import GREY, Marks, Panel, figure

# A PPO step's figures that are kept; the recorded name of each.
STEP_METRICS = {
    "score": "objective/scores",
    "kl": "objective/kl",
    "response_length": "rollout/response_length",
    "entropy": "objective/entropy",
}
_GAIN = ("before", "after", "gain", "gain_low", "gain_high")
EVALUATION_METRICS = (
    *(f"{scorer}/{name}" for scorer in ("proxy", "gold") for name in _GAIN),
    *(f"{scorer}/{name}" for scorer in ("win_rate", "gold_win_rate") for name in ("mean", "low", "high")),
    *(f"{name}/{side}" for name in ("distinct_2", "response_length") for side in ("before", "after")),
    "kl/mean",
)  # fmt: skip
COLLAPSE_RULE = (
    "A run counts as collapsed where a stage failed, a figure of the evaluation or a PPO step's score or KL is missing "
    "or not finite, the 95 % interval of the gold gain lies below 0, or distinct-2 is below half of SFT's."
)
_DIVERSITY_LEFT = 0.5


def read_result(run_dir: Path, *, seed: int, kl_coef: float) -> dict[str, Any]:
    """One row of `results.jsonl`, from the files of a run that has ended.

    Args:
        run_dir: Folder of the run.
        seed: Of the run.
        kl_coef: Of the run.
    """
    record = read_json(run_dir / "run.json")
    stages = {stage["name"]: stage for stage in record.get("stages", [])}
    found = stages.get("evaluation", {}).get("metrics", {})
    return {
        "seed": seed,
        "kl_coef": kl_coef,
        "run": run_dir.name,
        "status": record.get("status"),
        "failed_stage": next((name for name, stage in stages.items() if stage["status"] == "failed"), None),
        "seconds": {name: stage["seconds"] for name, stage in stages.items() if stage["status"] == "executed"},
        "steps": [
            {"step": row["step"], **{name: row.get(metric) for name, metric in STEP_METRICS.items()}}
            for row in read_rows(run_dir / "ppo" / "metrics.jsonl")
        ],
        "evaluation": {name: found.get(name) for name in EVALUATION_METRICS},
    }


def collapse_reasons(result: Mapping[str, Any]) -> list[str]:
    """Why a run counts as collapsed by `COLLAPSE_RULE`; empty where it does not."""
    if result["status"] != "completed":
        return [f"{result['failed_stage'] or 'the run'} {result['status']}"]
    evaluation = result["evaluation"]
    unknown = [name for name in EVALUATION_METRICS if not _is_finite(evaluation.get(name))]
    unknown += [
        f"{name} of step {row['step']}"
        for row in result["steps"]
        for name in ("score", "kl")
        if not _is_finite(row.get(name))
    ]
    if unknown:
        return [f"not finite: {', '.join(unknown)}"]
    reasons = []
    if evaluation["gold/gain_high"] < 0:
        reasons.append("gold fell")
    if evaluation["distinct_2/after"] < _DIVERSITY_LEFT * evaluation["distinct_2/before"]:
        reasons.append("distinct-2 halved")
    return reasons


def run_table(results: Sequence[Mapping[str, Any]]) -> str:
    """One line a run."""
    header = (
        "seed", "KL coefficient", "proxy, SFT", "proxy, PPO", "gold, SFT", "gold, PPO", "gold gain, 95 % interval",
        "win rate by proxy", "win rate by gold", "KL, nats", "distinct-2, SFT", "PPO", "tokens, SFT", "PPO",
        "collapsed",
    )  # fmt: skip
    return markdown_table(header, [_run_row(result) for result in results])


def summary_table(results: Sequence[Mapping[str, Any]]) -> str:
    """One line a KL coefficient: means over seeds with their standard errors, and counts."""
    header = (
        "KL coefficient", "seeds", "proxy gain", "gold gain", "win rate by gold", "KL, nats", "distinct-2, PPO / SFT",
        "gold gain's interval above 0", "collapsed",
    )  # fmt: skip
    rows: list[Row] = []
    for kl_coef in sorted({result["kl_coef"] for result in results}):
        group = [result for result in results if result["kl_coef"] == kl_coef]
        whole = [result["evaluation"] for result in group if _is_whole(result)]
        rows.append(
            (
                f"{kl_coef:g}",
                str(len(group)),
                *(
                    mean_error([row[name] for row in whole])
                    for name in ("proxy/gain", "gold/gain", "gold_win_rate/mean", "kl/mean")
                ),
                mean_error([row["distinct_2/after"] / row["distinct_2/before"] for row in whole]),
                f"{sum(row['gold/gain_low'] > 0 for row in whole)} of {len(group)}",
                f"{sum(bool(collapse_reasons(result)) for result in group)} of {len(group)}",
            )
        )
    return markdown_table(header, rows)


def mean_error(values: Sequence[float]) -> str:
    """Mean and standard error of the mean over seeds, `1.23 +- 0.04`; a dash where there is none."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{fmean(values):.2f} +- {stdev(values) / math.sqrt(len(values)):.2f}"


def plot(results: Sequence[Mapping[str, Any]]) -> str:
    """Proxy and gold score against the KL to SFT, as an SVG file."""
    coefficients = sorted({result["kl_coef"] for result in results})
    proxy: list[Marks] = []
    gold: list[Marks] = []
    for colour, kl_coef in enumerate(coefficients):
        group = [result for result in results if result["kl_coef"] == kl_coef]
        for result in group:
            steps = [(row["kl"], row["score"]) for row in result["steps"]]
            known = [(kl, score) for kl, score in steps if _is_finite(kl) and _is_finite(score)]
            if known:
                proxy.append(Marks(known, colour, "line", faint=True))
        ends = [result["evaluation"] for result in group if _is_whole(result)]
        proxy.append(Marks([(end["kl/mean"], end["proxy/after"]) for end in ends], colour, "dots"))
        gold.append(Marks([_gain_whisker(end) for end in ends], colour, "whiskers"))
        gold.append(Marks([(end["kl/mean"], end["gold/after"]) for end in ends], colour, "dots"))
    # The same SFT policy starts all coefficients of a seed.
    starts = {result["seed"]: result["evaluation"] for result in results if _is_whole(result)}.values()
    proxy.append(Marks([(0.0, start["proxy/before"]) for start in starts], GREY, "rings"))
    gold.append(Marks([(0.0, start["gold/before"]) for start in starts], GREY, "rings"))
    x_label = "KL to SFT, nats a response"
    panels = [
        Panel("Proxy: PPO's steps (lines), held out (dots)", x_label, "reward-model score", proxy),
        Panel("Gold: held out, 95 % interval of the gain", x_label, "gold score", gold),
    ]
    legend = [(f"KL coefficient {value:g}", colour) for colour, value in enumerate(coefficients)]
    return figure(panels, [*legend, ("SFT", GREY)])


def _gain_whisker(end: Mapping[str, float]) -> tuple[float, float, float]:
    before = end["gold/before"]
    return end["kl/mean"], before + end["gold/gain_low"], before + end["gold/gain_high"]


def _run_row(result: Mapping[str, Any]) -> Row:
    found = result["evaluation"]

    def cell(name: str, digits: int = 2) -> str:
        value = found.get(name)
        return f"{value:.{digits}f}" if _is_finite(value) else "-"

    return (
        str(result["seed"]),
        f"{result['kl_coef']:g}",
        cell("proxy/before"),
        cell("proxy/after"),
        cell("gold/before"),
        cell("gold/after"),
        f"{cell('gold/gain')} [{cell('gold/gain_low')}, {cell('gold/gain_high')}]",
        cell("win_rate/mean"),
        cell("gold_win_rate/mean"),
        cell("kl/mean"),
        cell("distinct_2/before", 3),
        cell("distinct_2/after", 3),
        cell("response_length/before", 1),
        cell("response_length/after", 1),
        "; ".join(collapse_reasons(result)) or "no",
    )


def _is_whole(result: Mapping[str, Any]) -> bool:
    """Whether all figures of the evaluation are there, collapsed or not."""
    return result["status"] == "completed" and all(_is_finite(result["evaluation"].get(n)) for n in EVALUATION_METRICS)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
