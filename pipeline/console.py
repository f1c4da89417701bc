"""What the user sees of a run: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data.redaction import redact

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_EVERY_SECONDS = 10.0
_HEADLINES = (
    "gold/gain", "proxy/gain", "win_rate/mean", "kl/mean", "eval/accuracy", "eval/loss", "train/loss",
    "objective/scores", "objective/kl", "train/pairs", "human/labels", "human/krippendorff_alpha",
)  # fmt: skip


class Console:
    """Lines and progress on standard error, so that standard output stays free for results."""

    def __init__(self) -> None:
        """Decide by whether standard error is a terminal."""
        self._is_terminal = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase: tuple[str, int] | None = None
        self._done = self._done_at_start = 0
        self._started = 0.0
        self._last_plain = 0.0

    def line(self, text: str) -> None:
        """Print one line, without secrets."""
        text = redact(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, stage: str, done: int, total: int, what: str) -> None:
        """Show how far a stage is. A count that starts again, or has another end, is a phase of its own."""
        if (stage, total) != self._phase or done < self._done:
            self.end_progress()
            self._phase, self._started, self._last_plain = (stage, total), time.monotonic(), time.monotonic()
            self._done_at_start = done
        self._done = done
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
        self._phase = None

    def _rate(self, done: int, total: int) -> str:
        elapsed = time.monotonic() - self._started
        new = done - self._done_at_start
        if new <= 0 or elapsed < 1 or done >= total:
            return ""
        left = elapsed / new * (total - done)
        return f", {new / elapsed:.2f}/s, {duration(left)} left"

    def _draw(self, stage: str, done: int, total: int, what: str) -> None:
        from rich.console import Console as RichConsole
        from rich.markup import escape
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
            self._task = self._bar.add_task(stage, total=total, rate="")
            self._bar.start()
        assert self._task is not None
        elapsed, new = time.monotonic() - self._started, done - self._done_at_start
        rate = f"{new / elapsed:.2f}/s" if new and elapsed > 1 else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate, description=f"{stage}: {escape(what)}")


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
    """A few figures of a stage on one line: those that say how it went, else the first ones."""
    chosen = [name for name in _HEADLINES if name in metrics] or list(metrics)
    numbers = {name: metrics[name] for name in chosen if isinstance(metrics[name], int | float)}
    shown = [f"{name} {value:.4g}" for name, value in numbers.items()]
    return ", ".join(shown[:limit])


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
