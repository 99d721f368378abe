"""TensorBoard events of a run, without TensorFlow or torch."""

import atexit
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """Scalars in ``tb/``; the files are opened with the first one.

    TensorBoard shows only what came before `restart` when a run goes on from a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        """Write below ``path``."""
        self._path = path
        self._writer: Any = None

    def add(self, step: int, values: Mapping[str, object]) -> None:
        """Add the numbers among ``values`` at a step; other values are left to metrics.jsonl."""
        numbers = {
            key: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if not numbers:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(
            value=[Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
        )
        self._open().add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def restart(self, step: int) -> None:
        """Make TensorBoard forget what earlier processes wrote for steps after ``step``."""
        if not self._path.is_dir():
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        mark = SessionLog(status=SessionLog.START)
        self._open().add_event(Event(wall_time=time.time(), step=step + 1, session_log=mark))

    def flush(self) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.flush()

    def _open(self) -> Any:
        if self._writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self._writer = EventFileWriter(str(self._path))
            atexit.register(self._writer.close)
        return self._writer
