"""From a created run folder to its end: server, flow, tracking, summary, and what the exit code says."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import StageError, UserError
from pipeline.config import PipelineConfig
from pipeline.console import Console, stage_table
from pipeline.launch import set_environment, stage_environment
from pipeline.run_record import RunStatus
from pipeline.runs import RunFolder
from pipeline.server import ServerLease, lease_server
from pipeline.session import RunPlan, Session
from pipeline.timings import Timings
from pipeline.tracking import Tracker, start_tracker
from stages.checkpoint import newest_step
from stages.interruption import Interrupted, announcing
from stages.preferences.labeling import LABELING
from stages.storage import storage_error

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_FAILED, EXIT_USER = 0, 1, 2


def execute_run(config: PipelineConfig, config_dir: Path | None, run: RunFolder, plan: RunPlan) -> int:
    """Execute a run whose folder exists, and return the exit code.

    `run.json` says how it ended whatever happens, short of SIGKILL.
    """
    console, timings = Console(), Timings()
    lease: ServerLease | None = None
    tracker: Tracker | None = None
    with _warnings_on(console), announcing(), _restored("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        try:
            console.line(f"run {run.name} in {run.path}")
            _tell_foreign_code(config, run)
            set_environment(stage_environment(config, config_dir))
            with timings.measure("server_start"):
                lease = lease_server()
            with timings.measure("wandb_start"):
                segment = 1 + len(run.record.get("resumed", []))
                tracker = start_tracker(config.tracking, run=run.name, run_dir=run.path, segment=segment)
            session = Session(config, config_dir, run, plan, console, tracker, timings)
            _run_on(lease, session)
            run.finish("completed")
            code = EXIT_DONE
        except KeyboardInterrupt as error:
            _finish(console, run, "cancelled")
            console.line(f"run {run.name} was cancelled; {_going_on(run)}")
            code = error.exit_code if isinstance(error, Interrupted) else 128 + signal.SIGINT
        except Exception as error:  # of whatever kind a library raises: the run has failed, and says so
            problem = error if isinstance(error, UserError) else storage_error(error, run.output_dir)
            _finish(console, run, "failed")
            if problem is not None:
                console.line(str(problem))
                code = EXIT_USER
            else:
                _tell_failure(console, run, error)
                code = EXIT_FAILED
        finally:
            console.end_progress()
            with timings.measure("report"):
                _write_report(console, run)  # of a failed run too: it says which stage failed, and how
            _close(console, run, tracker, lease, timings)
            with suppress(OSError):  # a full disk; it was told
                run.update(timings=timings.to_json())
            run.let_go()
    _summarise(console, run)
    return code


def _finish(console: Console, run: RunFolder, status: RunStatus) -> None:
    try:
        run.finish(status)
    except OSError as error:
        console.line(f"{run.path / 'run.json'}: cannot be written ({error.strerror}), so it still says `running`")


def _tell_foreign_code(config: PipelineConfig, run: RunFolder) -> None:
    """A run that executes code of a model's repository says so where it is looked at: here, `run.json`, the report."""
    models = {"model": config.model, config.own_reward_key: config.own_reward_base}
    trusting = {f"{key}.trust_remote_code": model for key, model in models.items() if model and model.trust_remote_code}
    for key, model in trusting.items():
        logger.warning("%s is true: this run executes Python code that comes with %s", key, model.base)
    if trusting:
        run.update(trusts_code=sorted(trusting))


def _run_on(lease: ServerLease, session: Session) -> None:
    # Before prefect is imported: its background threads have the settings of that moment. What it prints on the
    # terminal repeats what we print; what it logs is on the page of the run.
    os.environ.update(lease.environment)
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    timings = session.timings
    with timings.measure("prefect_import"):
        from pipeline.flow import run_flow

    with timings.measure("server_start"):
        lease.wait_until_healthy()
    with timings.measure("prefect_flow"):
        run_flow(session, lease.api_url, lease.ui_url)


def _close(
    console: Console, run: RunFolder, tracker: Tracker | None, lease: ServerLease | None, timings: Timings
) -> None:
    if lease is not None:
        flow_run_id = run.record.get("prefect", {}).get("flow_run_id")
        if flow_run_id is not None:
            from pipeline.flow import drain

            started = [stage for stage in run.record["stages"] if stage["status"] not in ("skipped", "pending")]
            with timings.measure("prefect_drain"):
                drain(lease.api_url, flow_run_id, len(started))
        with timings.measure("server_stop"):
            lease.release()
    if tracker is not None:
        with timings.measure("wandb_close"):
            messages = tracker.close()
        for message in messages:
            console.line(message)


def _write_report(console: Console, run: RunFolder) -> None:
    from pipeline.report import write_report

    try:
        console.line(f"report: {write_report(run.path)}")
    except Exception as error:  # of whatever kind: a page that cannot be drawn makes no completed run a failed one
        logger.warning("the report could not be written (%s); `rlhf report %s` tries again", error, run.name)


def _tell_failure(console: Console, run: RunFolder, error: Exception) -> None:
    stage = next((stage["name"] for stage in run.record["stages"] if stage["status"] == "failed"), None)
    if isinstance(error, StageError | ConnectionError) and str(error):
        console.line(str(error))
    else:
        console.line(f"{stage or run.name}: {type(error).__name__}: {error}")
    if stage is not None:
        console.line(f"its log: {run.path / stage / 'log.txt'}")
        if "`rlhf resume" not in str(error):
            console.line(f"when the cause is mended, {_going_on(run)}")


def _summarise(console: Console, run: RunFolder) -> None:
    for line in ("", *stage_table(run.record["stages"]), "", f"{run.record['status']}: {run.path}"):
        console.line(line)


def _going_on(run: RunFolder) -> str:
    """The command that goes on with a run that has ended before its end, and where it does."""
    command = f"`rlhf resume {run.name}{run.output_dir_option}` goes on"
    for entry in run.record["stages"]:
        if entry["status"] == "failed":
            if (run.stage_dir(entry["name"]) / LABELING).is_dir():
                return f"{command} in {entry['name']}, with all labels"
            step = newest_step(run.stage_dir(entry["name"]))
            return f"{command} {'at the start' if step is None else f'after step {step}'} of {entry['name']}"
    return command


@contextmanager
def _restored(*names: str) -> Iterator[None]:
    """Put environment variables back: the next run in this process must not take our server for the user's."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.line(f"warning: {record.getMessage()}")


@contextmanager
def _warnings_on(console: Console) -> Iterator[None]:
    """Show the warnings of this package as lines of ours."""
    logger = logging.getLogger("pipeline")
    handler = _ConsoleHandler(console)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
