"""`rlhf resume RUN`: go on where a run was cut off, to the result that it would have had."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from data.errors import ConfigError
from pipeline.checks import check_inputs
from pipeline.config import PipelineConfig
from pipeline.execution import EXIT_DONE, execute_run
from pipeline.loading import read_yaml, resolve, validate_values
from pipeline.runs import RunFolder, now, open_run
from pipeline.session import Recorded, RunPlan
from pipeline.store import verify_recorded

_FINISHED = ("executed", "cached")


def resume(options: argparse.Namespace) -> int:
    """Take what the run has finished as recorded, and execute the rest; training goes on from its newest checkpoint."""
    run = open_run(Path(options.output_dir).expanduser().resolve(), options.run)
    run.hold()
    try:
        return _go_on(run)
    finally:
        run.let_go()


def _go_on(run: RunFolder) -> int:
    run.record = open_run(run.output_dir, run.name).record  # its process may have ended it in the meantime
    if run.record["status"] == "completed":
        print(f"run {run.name} is completed; there is nothing to go on with")
        return EXIT_DONE
    config = _recorded_config(run)
    check_inputs(config, run.config_dir)
    plan = plan_resume(run)
    _reopen(run, plan)
    return execute_run(config, run.config_dir, run, plan)


def plan_resume(run: RunFolder) -> RunPlan:
    """The plan that the run was started with; finished stages are taken as they are, whatever the code is now.

    Raises:
        ConfigError: The run was started by a version that recorded no plan.
        ArtifactError: A finished stage's artifact is missing or damaged.
    """
    if run.record.get("plan") is None:
        raise ConfigError(
            f"run {run.name}: {run.path / 'run.json'} has no plan, which an earlier version did not record; "
            f"start a new run with `rlhf run {run.record.get('config_path') or 'CONFIG'}`: finished stages are in the "
            f"store"
        )
    plan = RunPlan.from_json(run.record["plan"], run.store_dir)
    recorded = dict(plan.recorded)
    for entry in run.record["stages"]:
        artifact = run.artifact(entry["name"])
        if entry["status"] in _FINISHED and artifact is not None:
            verify_recorded(run.store_dir, artifact, entry["fingerprint"])
            recorded[entry["name"]] = Recorded(artifact, entry["fingerprint"] or "", run.name)
    return replace(plan, recorded=recorded)


def _recorded_config(run: RunFolder) -> PipelineConfig:
    path = run.path / "config.yaml"
    config = validate_values(read_yaml(path), [], str(path))
    # The folder may have been moved since.
    return resolve(config.model_copy(update={"output_dir": str(run.output_dir)}))


def _reopen(run: RunFolder, plan: RunPlan) -> None:
    """Have `run.json` say that the run goes on: what is not finished is pending again."""
    for half_written in run.path.glob(".run.json.*"):
        half_written.unlink(missing_ok=True)
    for entry in run.record["stages"]:
        if entry["name"] not in plan.recorded:
            entry["status"] = "pending"
            entry.pop("error", None)
    run.record.pop("finished", None)
    run.update(status="running", pid=os.getpid(), resumed=[*run.record.get("resumed", []), now()])
