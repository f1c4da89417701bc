"""What the user sees of a run: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_EVERY_SECONDS = 10.0


class Console:
    """Lines and progress on standard error, so that standard output stays free for results."""

    def __init__(self) -> None:
        """Decide by whether standard error is a terminal."""
        self._is_terminal = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._started = 0.0
        self._last_plain = 0.0

    def line(self, text: str) -> None:
        """Print one line."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, stage: str, done: int, total: int, what: str) -> None:
        """Show how far a stage is. Each `what` is counted on its own."""
        if what != self._what:
            self.end_progress()
            self._what, self._started, self._last_plain = what, time.monotonic(), time.monotonic()
        if self._is_terminal:
            self._draw(stage, done, total, what)
        elif done >= total or time.monotonic() - self._last_plain >= _PLAIN_EVERY_SECONDS:
            self._last_plain = time.monotonic()
            self.line(f"  {stage}: {what} {done}/{total}{self._rate(done, total)}")

    def end_progress(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None
        self._what = ""

    def _rate(self, done: int, total: int) -> str:
        elapsed = time.monotonic() - self._started
        if done <= 0 or elapsed < 1 or done >= total:
            return ""
        left = elapsed / done * (total - done)
        return f", {done / elapsed:.2f}/s, {duration(left)} left"

    def _draw(self, stage: str, done: int, total: int, what: str) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=RichConsole(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(f"{stage}: {what}", total=total, rate="")
            self._bar.start()
        assert self._task is not None
        elapsed = time.monotonic() - self._started
        rate = f"{done / elapsed:.2f}/s" if done and elapsed > 1 else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def metrics_text(metrics: Mapping[str, Any], limit: int = 4) -> str:
    """The first few figures of a stage on one line."""
    shown = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
    more = f", and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table with aligned columns."""
    content = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in content) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in content]


def stage_table(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    """The stages of `run.json` as a table."""
    return table(
        ("stage", "status", "time", "artifact", "metrics"),
        (
            (
                stage["name"],
                stage["status"],
                duration(stage.get("seconds")),
                (stage.get("artifact") or {}).get("digest", "-")[:12],
                metrics_text(stage.get("metrics") or {}),
            )
            for stage in stages
        ),
    )
