"""Run directories, checkpoints and signals: what survives a kill, and how.

Every file is written atomically (`ft2.files`, whose functions this module offers too). ``latest``
(after a checkpoint) and ``result.json`` (after a run) are written last: each proves that what came
before is complete.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ft2.board import Board
from ft2.config import Config, dump_yaml
from ft2.errors import RunError, UsageError
from ft2.files import (
    SCHEMA_VERSION,
    TEMPORARY_SUFFIX,
    atomic_dir,
    finite,
    hash_file,
    load_tensors,
    publish_dir,
    read_json,
    save_tensors,
    write_atomic,
    write_json,
)
from ft2.interrupts import Interrupts
from ft2.outputs import check_output, clean, compare_config, lock, rank
from ft2.record import record_command

__all__ = [
    "SCHEMA_VERSION",
    "Interrupts",
    "Progress",
    "RunDir",
    "Silent",
    "atomic_dir",
    "check_output",
    "hash_file",
    "load_tensors",
    "read_json",
    "save_tensors",
    "write_atomic",
    "write_json",
]


class Progress(Protocol):
    """Where long work says how far it is."""

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Report ``done`` of ``total`` steps of ``stage``; ``note`` is one short finding."""


class Silent:
    """A `Progress` that says nothing."""

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Do nothing."""


def _barrier() -> None:
    """Wait for the other processes, when torch.distributed is running."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


class RunDir:
    """The directory of one run: config, command, metrics, checkpoints and result.

    With several processes only rank 0 writes; the others share `path` and `checkpoint`, which
    waits for all of them. Open one with `RunDir.open`.
    """

    def __init__(self, path: Path) -> None:
        """Wrap a directory that `open` has prepared."""
        self.path = path
        self.result: dict[str, Any] | None = None
        if (path / "result.json").exists():
            self.result = read_json(path / "result.json")
        self._main = rank() == 0
        self._board = Board(path / "tb")

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files: rank 0 does."""
        return self._main

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        config: Config,
        resume: bool,
        argv: Sequence[str] | None = None,
    ) -> "RunDir":
        """Return the run directory, new or, with ``resume``, the existing one.

        Args:
            path: The directory; made when missing.
            config: What the run does; must equal the recorded one on a resume.
            resume: Go on in an existing directory; on a missing one it starts the run.
            argv: The command to record; ``sys.argv`` when None.

        Raises:
            UsageError: The directory has content and ``resume`` is off, it is not a run
                directory, another process is using it, or the config differs.
        """
        path = Path(path)
        if rank() != 0:
            path.mkdir(parents=True, exist_ok=True)
            return cls(path)
        check_output(path, resume=resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make the run directory '{path}': {error.strerror}",
                "choose another --output",
            ) from error
        lock(path)
        if (path / "config.yaml").exists():
            compare_config(path / "config.yaml", config)
            clean(path)
        else:
            write_atomic(path / "config.yaml", dump_yaml(config))
        record_command(path / "command.json", list(sys.argv if argv is None else argv))
        return cls(path)

    def log(self, step: int, **values: object) -> None:
        """Append one object to ``metrics.jsonl`` and flush it; NaN is written as null.

        The numbers among the values go to TensorBoard (``tb/``) too.
        """
        if self._main:
            plain = {key: finite(value) for key, value in values.items()}
            line = json.dumps({"step": step, **plain}, allow_nan=False)
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._board.add(step, plain)

    def rewind(self, step: int) -> None:
        """Drop the metrics after ``step``, and a line that a kill cut short."""
        file = self.path / "metrics.jsonl"
        if not self._main or not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_atomic(file, "".join(kept))
        self._board.restart(step)

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Yield a temporary directory that becomes ``checkpoints/NNNNNN`` when the block ends.

        ``latest`` is written after it; then all but the newest two checkpoints are removed.
        """
        folder = self.path / "checkpoints"
        temporary = folder / f".{step:06d}{TEMPORARY_SUFFIX}"
        if self._main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        _barrier()
        try:
            yield temporary
        except BaseException:
            if self._main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        _barrier()
        if self._main:
            publish_dir(temporary, folder / f"{step:06d}")
            write_atomic(folder / "latest", f"{step:06d}\n")
            self._prune(step)
        _barrier()

    def _prune(self, step: int) -> None:
        steps = [p for p in (self.path / "checkpoints").iterdir() if p.name.isdigit()]
        older = sorted((p for p in steps if int(p.name) < step), key=lambda p: int(p.name))
        stale = older[:-1] + [p for p in steps if int(p.name) > step]
        for folder in stale:
            shutil.rmtree(folder)

    def latest(self) -> tuple[int, Path] | None:
        """Return step and directory of the newest complete checkpoint, or None.

        Raises:
            RunError: ``latest`` names a checkpoint that is not there.
        """
        pointer = self.path / "checkpoints" / "latest"
        if not pointer.exists():
            return None
        name = pointer.read_text(encoding="utf-8").strip()
        folder = pointer.with_name(name)
        if not name.isdigit() or not folder.is_dir():
            raise RunError(
                f"'{pointer}' names the checkpoint '{name}', which does not exist",
                "write the number of an existing one into it, or start anew",
            )
        return int(name), folder

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, which marks the run as complete; call it last."""
        if self._main:
            self._board.flush()
            if (latest := self.latest()) is not None:
                self._prune(latest[0])  # a kill may have come between `latest` and the pruning
            write_json(self.path / "result.json", dict(result))
        _barrier()
        self.result = dict(result)
