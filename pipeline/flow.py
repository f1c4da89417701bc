"""The Prefect flow: one task a stage, its log lines, its artifacts, and what is retried.

The store alone decides what is executed; Prefect's own result cache is off. A stage that the store has
returns a state called Cached, so that the timeline shows it.
"""

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from prefect import flow, get_run_logger, tags, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import TagsContext, get_run_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)
from prefect.states import Completed, Crashed, Paused, Running, State

from data.errors import StageError, UserError
from data.redaction import holds_secret, redact, redact_values
from pipeline.graph import stage_inputs
from pipeline.progress import ProgressMirror
from pipeline.server import answers
from pipeline.session import Session
from pipeline.tasks import StageOutcome, run_stage_task
from stages.contract import StageName, artifact_from_json
from stages.interruption import announcing

logger = logging.getLogger(__name__)

RETRY_DELAYS_SECONDS = [5.0, 30.0]
_LOG_DRAIN_SECONDS = 10
_ROWS_SETTLED_WITHIN_SECONDS = 20.0
_POLL_SECONDS = 0.1
# Names, so that neither requests nor httpx nor huggingface_hub is imported to compare.
_CONNECTION_ERRORS = {
    "ConnectionError", "TimeoutError", "ConnectTimeout", "ReadTimeout", "TransportError", "HfHubHTTPError",
}  # fmt: skip


def run_flow(session: Session, api_url: str, ui_url: str) -> None:
    """Run the stages of a session as a Prefect flow.

    Args:
        session: The run.
        api_url: Address of Prefect's API.
        ui_url: Address of Prefect's user interface, for `run.json`.

    Raises:
        UserError: The user's input is at fault.
        StageError: A stage failed; inline, its own exception comes through.
        KeyboardInterrupt: The run was cancelled.
    """
    run = session.run

    # The parameters are what the run page shows; the session holds what cannot be shown.
    def rlhf(run: str, config: dict[str, Any]) -> None:
        flow_run_id = str(get_run_context().flow_run.id)
        url = f"{ui_url}/runs/flow-run/{flow_run_id}"
        session.run.update(prefect={"url": url, "flow_run_id": flow_run_id})
        session.console.line(f"Prefect: {url}")
        results: dict[StageName, Any] = {}
        inputs = stage_inputs(session.config)
        # The run has the labels, its tasks have none: for each label of a task Prefect asks the server for a slot, on
        # a connection that the server closes after five idle seconds, and then waits two seconds to ask again.
        with TagsContext(current_tags=set()):
            for stage in session.stages:
                upstream = {role: results[source] for role, source in inputs[stage].items()}
                results[stage] = _stage_task(session, stage)(upstream)

    # Called, not used as decorators: mypy does not follow prefect's types.
    earlier = run.record.get("prefect", {}).get("flow_run_id")
    rlhf_flow = flow(name="rlhf", flow_run_name=run.name, validate_parameters=False, persist_result=False)(rlhf)
    labels = ["rlhf", _tag(session.config.model.base), run.name]
    with _settings(api_url), tags(*labels):
        if earlier is not None:
            _close_killed(earlier)
        rlhf_flow(run=run.name, config=redact_values(session.config.model_dump(mode="json")))


def _close_killed(flow_run_id: str) -> None:
    """Have an earlier flow run of this run, which was killed, end as Crashed: it could not say so itself."""
    state = Crashed(message="its process was killed; the run was resumed")
    try:
        with get_client(sync_client=True) as client:
            for row in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))):
                if row.state is None or not row.state.is_final():
                    client.set_task_run_state(row.id, state, force=True)
            flow_run = client.read_flow_run(flow_run_id)
            if flow_run.state is None or not flow_run.state.is_final():
                client.set_flow_run_state(flow_run_id, state, force=True)
    except Exception as error:  # of whatever kind (another server, an emptied database): Prefect only mirrors
        logger.warning("Prefect: the run's earlier flow run %s could not be closed: %s", flow_run_id, error)


def _stage_task(session: Session, stage: StageName) -> Callable[[dict[str, Any]], Any]:
    def run_one(inputs: dict[str, Any]) -> dict[str, Any] | State[dict[str, Any]]:
        run_logger = get_run_logger()
        mirror = ProgressMirror(stage)
        try:
            with session.timings.measure("stages"), announcing():  # Prefect's own handler knows no second request
                outcome = run_stage_task(
                    session,
                    stage,
                    {role: artifact_from_json(value) for role, value in inputs.items()},
                    log=lambda line: run_logger.info("%s", line),
                    progress=mirror.update,
                    on_execute=mirror.start,
                    pausing=_paused,
                )
        except Exception as error:  # of whatever kind: Prefect stores its text and traceback
            if holds_secret("".join(traceback.format_exception(error))):
                raise _without_secrets(error) from None
            raise
        finally:
            mirror.stop()
        _show_artifacts(session, outcome)
        value = outcome.artifact.to_json()
        if outcome.status == "cached":
            run_logger.info("taken from the store: %s", outcome.artifact.digest)
            return Completed(name="Cached", data=value)
        return value

    stage_task: Callable[[dict[str, Any]], Any] = task(
        name=stage,
        task_run_name=f"{stage}-{session.run.name}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_DELAYS_SECONDS),
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_condition_fn=_is_worth_retrying,
    )(run_one)
    return stage_task


@contextmanager
def _paused(reason: str) -> Iterator[None]:
    """Show the flow run as paused while this lasts.

    By force: a pause of Prefect's own (`pause_flow_run`) ends after a time, asks the server every few seconds, and
    fails a run that somebody resumes too late.
    """
    flow_run_id = get_run_context().task_run.flow_run_id
    _set_flow_state(flow_run_id, Paused(message=reason))
    try:
        yield
    finally:
        _set_flow_state(flow_run_id, Running())


def _set_flow_state(flow_run_id: Any, state: State[Any]) -> None:
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run_id, state, force=True)
    except Exception as error:  # of whatever kind: Prefect only mirrors, and never ends a run
        logger.warning("Prefect: the run could not be shown as %s: %s", state.name, error)


def _without_secrets(error: Exception) -> Exception:
    """An error of the same meaning whose text can be stored; the traceback is in the stage's log."""
    text = redact(str(error))
    if isinstance(error, UserError):
        return UserError(text)
    if _is_of_network(error):
        return ConnectionError(text)
    return StageError(text if isinstance(error, StageError) else f"{type(error).__name__}: {text}")


def _is_worth_retrying(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether the network is to blame: only then can the same call end otherwise."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, UserError | StageError) and _is_of_network(error)


def _is_of_network(error: Any) -> bool:
    seen = 0
    while isinstance(error, BaseException) and seen < 10:
        if any(kind.__name__ in _CONNECTION_ERRORS for kind in type(error).__mro__):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _show_artifacts(session: Session, outcome: StageOutcome) -> None:
    """A table of the stage's figures and a link to its files on the run's page, also for cached stages."""
    key = outcome.stage.replace("_", "-")
    folder = session.run.stage_dir(outcome.stage)
    try:
        create_table_artifact(
            key=f"{key}-metrics",
            table=[{"metric": name, "value": value} for name, value in outcome.metrics.items()],
            description=f"{outcome.stage} of {session.run.name}: {outcome.status}",
        )
        create_link_artifact(
            key=f"{key}-files",
            link=(folder / "manifest.json").absolute().as_uri(),
            link_text=f"{outcome.artifact.TYPE} {outcome.artifact.digest[:12]}",
            description=f"{outcome.artifact.path}",
        )
    except Exception as error:  # of whatever kind: Prefect only mirrors, and never ends a run
        logger.warning("Prefect: the artifacts of %s could not be shown: %s", outcome.stage, error)


def _settings(api_url: str) -> AbstractContextManager[Any]:
    # The heartbeat thread is joined at the flow's end, which takes a second.
    values = {PREFECT_API_URL: api_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    # As the variable of now: prefect may have been imported when it was another server's, or not set.
    if (login := os.environ.get("PREFECT_API_AUTH_STRING")) is not None:
        values[PREFECT_API_AUTH_STRING] = login
    settings: AbstractContextManager[Any] = temporary_settings(values)
    return settings


def drain(api_url: str, flow_run_id: str, stages: int) -> None:
    """Wait until the server has what this process sent: its rows go through queues that a stop would drop.

    Args:
        api_url: Address of Prefect's API.
        flow_run_id: The flow run.
        stages: Task runs that must have reached their last state.
    """
    if not answers(api_url):
        logger.warning("Prefect: no server answers at %s any more; its record of this run is incomplete", api_url)
        return
    try:
        EventsWorker.drain_all()
        APILogWorker.drain_all(timeout=_LOG_DRAIN_SECONDS)
        with _settings(api_url):
            _wait_for_rows(flow_run_id, stages)
    except Exception as error:  # of whatever kind: the run itself is over and well recorded in its folder
        logger.warning("Prefect: its record of this run may be incomplete: %s", error)


def _wait_for_rows(flow_run_id: str, stages: int) -> None:
    """Until every started task run is terminal: a task's last state is the last that the server writes of it."""
    flow_filter = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + _ROWS_SETTLED_WITHIN_SECONDS
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            rows = client.read_task_runs(flow_run_filter=flow_filter)
            if len(rows) >= stages and all(row.state is not None and row.state.is_final() for row in rows):
                return
            time.sleep(_POLL_SECONDS)


def _tag(base: str) -> str:
    return base.rstrip("/").rpartition("/")[2] or base
