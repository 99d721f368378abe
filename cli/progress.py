"""Progress on stderr: a live display on a terminal, plain lines everywhere else."""

import atexit
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class LineProgress:
    """One line when a stage starts and ends, and at most one every ``interval_seconds`` between."""

    def __init__(self, stream: TextIO | None = None, interval_seconds: float = 10.0) -> None:
        """Write to ``stream``, stderr when None."""
        self._stream = sys.stderr if stream is None else stream
        self._interval = interval_seconds
        self._stage = ""
        self._started = 0.0
        self._printed = 0.0

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report ``done`` of ``total`` steps of ``stage`` with a short finding."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._printed = stage, now, 0.0
        if done < total and now - self._printed < self._interval:
            return
        self._printed = now
        line = f"{stage}: {done}/{total}  {now - self._started:.0f} s"
        self._stream.write(f"{line}  {note}\n" if note else f"{line}\n")
        self._stream.flush()


class LiveProgress:
    """A bar per stage, redrawn in place; a finished stage stays with its last finding."""

    def __init__(self) -> None:
        """Start nothing yet: the display begins with the first update."""
        self._display: RichProgress | None = None
        self._stage = ""

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report ``done`` of ``total`` steps of ``stage`` with a short finding."""
        display = self._display or self._begin()
        if stage != self._stage:
            self._stage = stage
            display.add_task(stage, total=total, note=note)
        display.update(display.task_ids[-1], completed=done, total=total, note=note)
        if done >= total:
            display.refresh()
            display.stop()
            self._display, self._stage = None, ""

    def _begin(self) -> "RichProgress":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._display.start()
        atexit.register(self._display.stop)
        return self._display
