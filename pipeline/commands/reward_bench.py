"""`rlhf reward-bench RUN FILE`: a run's reward model on a benchmark in the form of RewardBench."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import ConfigError
from data.reward_bench import read_bench
from pipeline.console import Console, table
from pipeline.launch import set_environment, stage_environment
from pipeline.loading import load_config
from pipeline.runs import open_run
from pipeline.store import verify_recorded

if TYPE_CHECKING:
    from stages.reward_model.bench_table import BenchRow, BenchTable


def reward_bench(options: argparse.Namespace) -> int:
    """Score the pairs, print the table, and write it as JSON where asked to."""
    run = open_run(Path(options.output_dir).expanduser().resolve(), options.run)
    artifact = run.artifact("reward_model")
    if artifact is None:
        raise ConfigError(
            f"run {run.name}: the stage reward_model left none; a finished reward model is needed; "
            f"`rlhf show {run.name}` says how far it came"
        )
    verify_recorded(run.store_dir, artifact, (run.stage("reward_model") or {}).get("fingerprint"))
    target = None if options.json_file is None else _target(options.json_file)
    bench = read_bench(options.file)
    config = load_config(run.path / "config.yaml")
    device = config.launch.device
    if device == "auto":
        raise ConfigError(f"run {run.name}: its configuration is not resolved; run it again with `rlhf run`")
    set_environment(stage_environment(config, run.config_dir))
    from stages.reward_model.bench_table import bench_table
    from stages.reward_model.benchmark import score_benchmark

    console = Console()
    scored = score_benchmark(
        artifact.path,
        config.model,
        bench.pairs,
        device=device,
        batch_size=options.batch_size,
        max_length=options.max_length,
        config_dir=run.config_dir,
        progress=lambda done, total: console.progress("reward-bench", done, total, "pairs"),
    )
    console.end_progress()
    found = bench_table([bench.pairs[row].source or "" for row in scored.rows], scored.differences, scored.lengths)
    print("\n".join(_lines(found)))
    trained = None if config.reward_model is None else config.reward_model.max_length
    print("\n".join(_remarks(bench.skipped, scored.dropped, scored.longest, trained)))
    if target is not None:
        values = asdict(found) | {
            "run": run.name,
            "reward_model": artifact.digest,
            "file": Path(options.file).name,
            "dropped": scored.dropped,
            "skipped": dict(bench.skipped),
        }
        target.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def _target(name: str) -> Path:
    target = Path(name).expanduser()
    if target.is_dir() or not target.parent.is_dir():
        raise ConfigError(f"--json {name}: no file can be written there; name a file in a folder that is there")
    return target


def _lines(found: "BenchTable") -> list[str]:
    rows = [_cells(row) for row in (*found.subsets, found.whole)]
    lines = table(("subset", "pairs", "accuracy", "95 %", "ties", "longer is better"), rows)
    lines += ["", f"mean of subsets  {found.mean:.1%}"]
    lines += [f"{name:16} {accuracy:.1%}" for name, accuracy in found.sections.items()]
    return lines + ([] if found.score is None else [f"RewardBench      {found.score:.1%} (mean of its four sections)"])


def _cells(row: "BenchRow") -> tuple[str, ...]:
    interval = f"{row.low:.1%} to {row.high:.1%}"
    return row.name, str(row.pairs), f"{row.accuracy:.1%}", interval, str(row.ties), f"{row.length_baseline:.1%}"


def _remarks(skipped: Mapping[str, int], dropped: int, longest: int, trained: int | None) -> list[str]:
    lines = [f"{count} rows are no pair: {reason}" for reason, count in sorted(skipped.items())]
    if dropped:
        lines.append(f"{dropped} pairs were dropped as too long")
    if trained is not None and longest > trained:
        lines.append(f"the longest sequence has {longest} tokens; the reward model was trained on up to {trained}")
    return lines
