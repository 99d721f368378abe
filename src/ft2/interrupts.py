"""Signals that wait for a safe point."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ft2.errors import Interrupted


class Interrupts:
    """Context in which SIGINT and SIGTERM only set ``pending``; the loop stops by `check`.

    A second signal of the same kind ends the process at once. Contexts may be nested. Outside
    the main thread, where Python allows no handlers, signals are left as they are.
    """

    def __init__(self) -> None:
        """Start with nothing pending."""
        self.pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the handlers; pass an unanswered signal on to the previous one."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self.pending is not None and kind is None and self._previous:
            handler = self._previous[self.pending]
            if callable(handler):
                handler(self.pending, None)
            else:
                raise Interrupted(self.pending)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.pending is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.pending = signum

    def check(self, hint: str = "") -> None:
        """Raise `Interrupted` with the hint when a signal has come; call it at a safe point."""
        if self.pending is not None:
            signum, self.pending = self.pending, None
            raise Interrupted(signum, hint)
