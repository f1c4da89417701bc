"""Does PPO learn what is wanted, or only what the reward model says? Seeds by KL coefficients, judged by gold.

    python -m benchmarks.gold --out FOLDER [--seeds 0 1 2 3] [--kl-coefs 0.05 0.1 0.2] [--plot FILE]

Each seed is one `rlhf run` of its own, data split, labels and all; its other coefficients find everything before PPO
in the store. `FOLDER/results.jsonl` has a line a run; what it has is not run again, so a benchmark that was stopped
goes on. To run one again, remove its line.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import free_name, last_lines, measured_environment, read_json, read_rows, rlhf
from benchmarks.conditions import condition_lines
from benchmarks.gold_results import COLLAPSE_RULE, collapse_reasons, plot, read_result, run_table, summary_table
from data.errors import ConfigError
from pipeline.loading import load_config
from stages.artifacts import file_digest

_PACKAGES = ("torch", "transformers", "trl", "peft", "vaderSentiment")
_FAILED = 1  # exit code of `rlhf` where a stage failed: a result; anything else is none


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables; 2 where the settings are at fault, 1 where a run was cut off."""
    options = _parse(arguments)
    try:
        check_config(options.config, options.set)
        results = recorded_results(options.out / "results.jsonl", _settings(options))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    lines = condition_lines(_PACKAGES)
    for seed in options.seeds:
        for kl_coef in options.kl_coefs:
            if not any((row["seed"], row["kl_coef"]) == (seed, kl_coef) for row in results):
                result = _run(options, seed, kl_coef)
                if result is None:
                    return 1
                results.append(result)
    wanted = [row for row in results if row["seed"] in options.seeds and row["kl_coef"] in options.kl_coefs]
    wanted.sort(key=lambda row: (row["kl_coef"], row["seed"]))
    print("\n".join([*lines, f"configuration: {_command_text(options)}", ""]))
    print(
        f"{summary_table(wanted)}\n\nMeans over seeds +- their standard error. {COLLAPSE_RULE}\n\n{run_table(wanted)}"
    )
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        options.plot.write_text(plot(wanted), encoding="utf-8")
    return 0


def recorded_results(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that an earlier call left.

    Args:
        path: `results.jsonl`; it may not exist yet.
        settings: Of this call; rows of others cannot be put into one table with these.

    Raises:
        ConfigError: A row was measured with other settings.
    """
    rows = read_rows(path)
    for row in rows:
        if row["settings"] != settings:
            raise ConfigError(
                f"{path}: the row of seed {row['seed']}, coefficient {row['kl_coef']:g} was measured with "
                f"{row['settings']}, not with {settings}; all rows need the same; give another folder with --out"
            )
    return rows


def check_config(config: Path, overrides: Sequence[str]) -> None:
    """Refuse what cannot answer the question.

    Raises:
        ConfigError: The configuration is wrong, or has no gold scorer.
    """
    evaluation = load_config(config, overrides).evaluation
    if evaluation is None or evaluation.gold is None:
        raise ConfigError(f"{config}: evaluation.gold is not set; the benchmark compares by it; set it to a rule")


def run_arguments(
    config: Path, overrides: Sequence[str], outputs: Path, name: str, *, seed: int, kl_coef: float
) -> list[str]:
    """The arguments of one `rlhf run`; seed and coefficient come last, so that no other option wins over them."""
    own = [f"seed={seed}", f"ppo.kl_coef={kl_coef}"]
    options = [part for value in [*overrides, *own] for part in ("--set", value)]
    return ["run", str(config), "--run", name, "--output-dir", str(outputs), *options]


def _run(options: argparse.Namespace, seed: int, kl_coef: float) -> dict[str, Any] | None:
    """Run one cell and append its row; None where it neither completed nor failed in a stage."""
    outputs = options.out / "outputs"
    stem = f"seed{seed}-kl{kl_coef:g}"
    name, done = stem, read_json(outputs / stem / "run.json")
    if done.get("status") != "completed":  # else it was cut off between the run's end and its row
        name = free_name(outputs, stem)
        arguments = run_arguments(options.config, options.set, outputs, name, seed=seed, kl_coef=kl_coef)
        print(f"rlhf {' '.join(arguments)}", file=sys.stderr, flush=True)
        log = options.out / "logs" / f"{name}.log"
        finished = rlhf(arguments, log, environment=measured_environment(options.out / "prefect"))
        # Without a failed stage something beside the training failed: Prefect's server, say. That is no result.
        failed = read_result(outputs / name, seed=seed, kl_coef=kl_coef)["failed_stage"] is not None
        if finished.code not in (0, _FAILED) or (finished.code == _FAILED and not failed):
            print(f"{name}: exit code {finished.code}; its last lines:", file=sys.stderr)
            print(last_lines(finished.output), file=sys.stderr)
            return None
    result = {**read_result(outputs / name, seed=seed, kl_coef=kl_coef), "settings": _settings(options)}
    with (options.out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, sort_keys=True) + "\n")
    print(f"{name}: {result['status']}; collapsed: {collapse_reasons(result) or 'no'}", file=sys.stderr, flush=True)
    return result


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {"config": options.config.name, "sha256": file_digest(options.config), "set": options.set}


def _command_text(options: argparse.Namespace) -> str:
    return " ".join([f"configs/{options.config.name}", *(f"--set {value}" for value in options.set)])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gold", description="PPO by a gold scorer.")
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), required=True, help="folder of all runs")
    parser.add_argument("--config", type=lambda text: Path(text).resolve(), default="configs/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--kl-coefs", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="passed on to each run")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
