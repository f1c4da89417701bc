"""A stage's progress as a Prefect artifact, from a thread that training never waits for."""

import threading

from prefect.artifacts import create_progress_artifact, update_progress_artifact

_EVERY_SECONDS = 3.0
_STOP_SECONDS = 3.0


class ProgressMirror:
    """Keeps the latest figure and sends it every few seconds. A slow or lost server costs only the picture."""

    def __init__(self, stage: str) -> None:
        """Prepare the mirror of one stage; nothing is sent before `start`."""
        self._stage = stage
        self._percent = 0.0
        self._artifact_id: object = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Create the artifact in the task's own context and begin to update it."""
        try:
            self._artifact_id = create_progress_artifact(
                progress=0.0,
                key=f"{self._stage.replace('_', '-')}-progress",
                description=f"{self._stage}: progress",
            )
        except Exception:  # of whatever kind: a picture of the progress is not worth a run
            return
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def update(self, done: int, total: int, what: str) -> None:
        """Take the latest figure. Never waits."""
        self._percent = 100.0 * done / total if total else 0.0

    def stop(self) -> None:
        """Send the last figure and end the thread, or leave it behind if the server hangs."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _follow(self) -> None:
        sent = 0.0
        last = False
        while not last:
            last = self._stopped.wait(_EVERY_SECONDS)
            percent = round(self._percent, 1)
            if percent == sent:
                continue
            try:
                update_progress_artifact(artifact_id=self._artifact_id, progress=percent)
                sent = percent
            except Exception:  # of whatever kind: the next figure may get through
                continue
