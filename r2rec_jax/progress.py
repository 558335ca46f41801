"""Progress of long steps: a rich bar on a terminal, one plain line every few seconds elsewhere.

Both show the count, the rate and the time left. Time spent compiling is reported apart (``bar.compiled``), since it
says nothing about the rate that follows.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0

_console = Console(stderr=True, highlight=False)


_muted = False


def mute() -> None:
    """Say nothing more: another process of the run speaks for all."""
    global _muted
    _muted = True


def say(text: str) -> None:
    """Print one plain line to standard error, above any bar that is running."""
    if _muted:
        return
    if _console.is_terminal:
        _console.print(text, markup=False)
    else:
        print(text, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """``75.2`` -> ``1m15s``; below a minute one decimal is kept."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


class Bar:
    """Progress of one step. Made by :func:`bar`.

    Args:
        title: what is being done.
        total: how many units there are; None when unknown.
        unit: what is counted.
        done: units already done before this run (a resumed step); they do not count for the rate.
    """

    def __init__(self, title: str, total: int | None, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self._initial = done, done
        self._started = time.monotonic()
        self._compile_s = 0.0
        self._last_line = self._started
        self._values: dict[str, Any] = {}
        self._stopped = threading.Event()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def _start(self) -> None:
        if not _console.is_terminal:
            threading.Thread(target=self._tick, daemon=True).start()
            return
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[values]}"), console=_console,
        )
        self._progress.start()
        self._task = self._progress.add_task(self.title, total=self.total, completed=self.done, rate="", values="")

    def _tick(self) -> None:
        """Off a terminal: a line every few seconds, also while one unit takes longer than that."""
        while not self._stopped.wait(LINE_EVERY_S / 5):
            if time.monotonic() - self._last_line >= LINE_EVERY_S:
                self._line()

    def _stop(self, failed: bool) -> None:
        self._stopped.set()
        if self._progress is not None:
            self._progress.stop()
        elif not failed:
            self._line(final=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start, compile time not counted."""
        return max(1e-9, time.monotonic() - self._started - self._compile_s)

    @property
    def rate(self) -> float:
        """Units a second of this run, compile time not counted."""
        return (self.done - self._initial) / self.seconds

    def compiled(self, what: str, seconds: float) -> None:
        """Report a compilation; its seconds leave the rate."""
        self._compile_s += seconds
        say(f"{self.title}: compiled {what} in {format_duration(seconds)}")

    def advance(self, count: int = 1, **values: Any) -> None:
        """Count ``count`` more units done, and show ``values`` beside them."""
        self.done += count
        self._values = values or self._values
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self.done, rate=f"{self.rate:.3g} {self.unit}/s",
                                  values=self._format_values())

    def _format_values(self) -> str:
        return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self._values.items())

    def _line(self, final: bool = False) -> None:
        self._last_line = time.monotonic()
        total = f"/{self.total}" if self.total is not None else ""
        parts = [f"{self.title}: {self.done}{total} {self.unit}", f"{self.rate:.3g} {self.unit}/s"]
        if final:
            parts.append(f"took {format_duration(self.seconds)}")
            if self._compile_s:
                parts.append(f"compile {format_duration(self._compile_s)}")
        else:
            parts.append(f"{format_duration(time.monotonic() - self._started)} so far")
            if self.total is not None and self.done > self._initial:
                parts.append(f"{format_duration((self.total - self.done) / self.rate)} left")
        if self._values:
            parts.append(self._format_values())
        print(" | ".join(parts), file=sys.stderr, flush=True)


@contextmanager
def bar(title: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Iterator[Bar]:
    """A progress bar around a ``with`` block.

    Example:
        >>> with bar("SFT", total=10, unit="updates") as progress:   # doctest: +SKIP
        ...     progress.advance(1, loss=0.5)
    """
    shown = Bar(title, total, unit, done)
    if _muted:
        yield shown
        return
    shown._start()
    failed = True
    try:
        yield shown
        failed = False
    finally:
        shown._stop(failed)
