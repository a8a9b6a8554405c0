"""Show how far a long piece of work is: total, rate and time left, always.

A live bar on a terminal; plain lines in logs, under NO_COLOR and on dumb terminals. Everything goes
to standard error, so that standard output stays clean for results. For the driver process only.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from dreamshard.foreign.shown import drawable, plain

PLAIN_INTERVAL_S = 5.0
MIN_BAR, MAX_BAR = 10, 40
"""Width of the bar (characters)."""
_WINDOW_S = 30.0  # the rate is that of the last half minute, so that the ETA follows a change


def is_interactive() -> bool:
    """Tell whether a live display makes sense on standard error."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stderr.isatty()


def stage(title: str) -> None:
    """Print one header line, such as "[2/5] encode"."""
    if is_interactive():
        _terminal().print(Text(plain(title), style="bold"))
    else:
        print(plain(title), file=sys.stderr, flush=True)


def fit(figures: Sequence[str], *, width: int) -> str:
    """Join the figures that fit into a width in characters; the first one is always there."""
    text = figures[0]
    for figure in figures[1:]:
        if len(text) + 2 + len(figure) <= width:
            text += f", {figure}"
    return text


def begin(title: str) -> None:
    """Print a command's first line, before the imports that take seconds; on the first rank."""
    if os.environ.get("RANK", "0") == "0":
        stage(title)


def _terminal() -> Console:
    """Return what draws on standard error with escapes of its own."""
    return Console(file=drawable(sys.stderr), highlight=False, markup=False, emoji=False)


def format_duration(seconds: float) -> str:
    """Format a duration in seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """Display the progress of one piece of work, as a context manager.

    Args:
        title: what is being done, one or two words.
        total: how many units there are in all, those done before included.
        unit: what is counted.
        initial: how many were done before this run; they count for the percentage, not the rate.
        quiet: show nothing (ranks other than 0, tests).
    """

    def __init__(
        self, title: str, *, total: int, unit: str = "img", initial: int = 0, quiet: bool = False
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.initial = self.done = initial
        self.ahead = 0
        """Units that are on their way and not done: shown, and taken back where they fail."""
        self.fields: dict[str, float | str] = {}
        self._quiet = quiet
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._start = self._last_line = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._start, self.done)])
        if self._quiet:
            return self
        if is_interactive():
            self._column = column = BarColumn()
            columns = (
                TextColumn("{task.description}", markup=False),
                column,
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._bar = RichProgress(*columns, console=_terminal())
            self._task = self._bar.add_task(
                self.title, total=self.total, completed=self.done, text=""
            )
            self._bar.start()
        self._show(self._status())
        return self

    def update(self, n: int = 1, **fields: float | str) -> None:
        """Count n more units as done.

        Args:
            n: how many units.
            fields: figures to show beside the bar (loss=0.12); each stays until replaced.
        """
        self.done += n
        self.ahead = max(0, self.ahead - n)
        self.fields.update(fields)
        self._mark()

    def underway(self, n: int) -> None:
        """Say that n more units are on their way; they count for what is shown alone."""
        n = max(0, min(n, self.total - self.done))
        if n != self.ahead:
            self.ahead = n
            self._mark()

    def _mark(self) -> None:
        now = time.monotonic()
        self._marks.append((now, self.done + self.ahead))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW_S:
            self._marks.popleft()
        if self._quiet:
            return
        if self._bar is not None or now - self._last_line >= PLAIN_INTERVAL_S:
            self._show(self._status())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._quiet:
            return
        self.ahead = 0
        self._show(self._summary(stopped=kind is not None))
        if self._bar is not None:
            self._bar.stop()

    @property
    def rate(self) -> float:
        """Return units per second over the last half minute; 0 before the first update."""
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        return max(0, after - before) / (last - first) if last > first else 0.0

    def _counts(self) -> str:
        seen = self.done + self.ahead
        percent = 100.0 * seen / self.total if self.total else 100.0
        return f"{seen:,}/{self.total:,} {self.unit} ({percent:.0f} %)"

    def _extras(self) -> list[str]:
        return [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.fields.items()
        ]

    def _status(self) -> list[str]:
        rate = self.rate
        left = (
            format_duration(max(0, self.total - self.done - self.ahead) / rate)
            if rate
            else "unknown"
        )
        return [self._counts(), f"{rate:,.4g} {self.unit}/s", f"ETA {left}", *self._extras()]

    def _summary(self, *, stopped: bool) -> list[str]:
        elapsed = time.monotonic() - self._start
        rate = (self.done - self.initial) / elapsed if elapsed > 0 else 0.0
        verb = "stopped after" if stopped else "in"
        time_taken = f"{verb} {format_duration(elapsed)}"
        return [self._counts(), f"{rate:,.4g} {self.unit}/s", time_taken, *self._extras()]

    def _show(self, figures: list[str]) -> None:
        if self._bar is not None and self._task is not None:
            width = self._bar.console.width - len(self.title) - 2  # a blank beside each column
            text = plain(fit(figures, width=width - MIN_BAR))
            self._column.bar_width = max(MIN_BAR, min(MAX_BAR, width - len(text)))
            self._bar.update(self._task, completed=self.done + self.ahead, text=text)
            return
        text = plain(", ".join(figures))
        self._last_line = time.monotonic()
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)
