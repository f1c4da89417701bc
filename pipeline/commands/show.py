"""`rlhf runs` and `rlhf show RUN`: what the runs' folders say."""

import argparse
import sys
from pathlib import Path

from pipeline.console import duration, stage_table, table
from pipeline.runs import RunFolder, list_runs, open_run


def list_all(options: argparse.Namespace) -> int:
    """Print a table of all runs."""
    output_dir = Path(options.output_dir).expanduser().resolve()
    runs = list_runs(output_dir, on_damaged=lambda error: print(error, file=sys.stderr))
    if not runs:
        print(f"{output_dir}: no runs yet; start one with `rlhf run CONFIG`")
        return 0
    rows = [(run.name, _status(run), run.record["started"], _total(run), _stages(run)) for run in runs]
    print("\n".join(table(("run", "status", "started", "time", "stages"), rows)))
    return 0


def show(options: argparse.Namespace) -> int:
    """Print one run, as `run.json` or for reading."""
    run = open_run(Path(options.output_dir).expanduser().resolve(), options.run)
    if options.json:
        sys.stdout.write((run.path / "run.json").read_text(encoding="utf-8"))
        return 0
    print("\n".join([f"{run.name}: {_status(run)}, started {run.record['started']}", f"folder {run.path}"]))
    for title, value in (
        ("config", run.record.get("config_path")),
        ("rerun of", run.record.get("source_run")),
        ("Prefect", run.record.get("prefect", {}).get("url")),
    ):
        if value:
            print(title, value)
    print()
    print("\n".join(stage_table(run.record["stages"])))
    for stage in run.record["stages"]:
        if stage.get("metrics"):
            print(f"\n{stage['name']}")
            rows = [(f"  {name}", _figure(value)) for name, value in stage["metrics"].items()]
            print("\n".join(table(("", ""), rows)[1:]))
    return 0


def _status(run: RunFolder) -> str:
    """The recorded status; a killed run could not record its end."""
    status: str = run.record["status"]
    if status == "running" and not run.is_held():
        return "running (its process is gone)"
    return status


def _total(run: RunFolder) -> str:
    return duration(sum(stage["seconds"] or 0 for stage in run.record["stages"]))


def _stages(run: RunFolder) -> str:
    counts: dict[str, int] = {}
    for stage in run.record["stages"]:
        counts[stage["status"]] = counts.get(stage["status"], 0) + 1
    return ", ".join(f"{number} {status}" for status, number in counts.items())


def _figure(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
