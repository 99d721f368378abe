"""Who may write to an output directory: nobody else's run, one process, the same config."""

import os
import shutil
import sys
from pathlib import Path

import yaml

from ft2.config import Config, dump_yaml, flatten
from ft2.errors import UsageError
from ft2.files import TEMPORARY_SUFFIX

_locks: dict[Path, int] = {}


def rank() -> int:
    """Return this process's number among those of a run; 0 when it is alone."""
    return int(os.environ.get("RANK", "0") or 0)


def check_output(path: str | Path, *, resume: bool) -> None:
    """Refuse an output directory that a run must not write to; change nothing.

    Raises:
        UsageError: It is a file, it has content and ``resume`` is off, or ``resume`` is on and
            it is not a run directory. With several processes only rank 0 looks, since it may
            have made the directory before another one comes to it.
    """
    if rank() != 0:
        return
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"the output '{path}' is a file", "choose another --output")
    used = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
    if used and not resume:
        raise UsageError(
            f"the run directory '{path}' already exists",
            "go on in it with --resume, or choose another --output",
        )
    if used and not (path / "config.yaml").is_file():
        raise UsageError(
            f"'{path}' is not a run directory: it has no config.yaml",
            "choose another --output",
        )


def lock(path: Path) -> None:
    """Hold an advisory lock until the process ends, so that two runs never share a directory.

    Raises:
        UsageError: Another process holds it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    path = path.resolve()
    if path in _locks and os.path.exists(path / ".lock"):  # noqa: PTH110
        return
    handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise UsageError(
            f"another process is using the run directory '{path}'",
            "wait for it or end it first",
        ) from error
    _locks[path] = handle


def compare_config(path: Path, config: Config) -> None:
    """Refuse a config that differs from the one a run recorded in ``path``.

    Raises:
        UsageError: A value differs, or the file is damaged.
    """
    try:
        old = flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise UsageError(
            f"'{path}' is damaged: {error}", "start anew in another --output"
        ) from error
    new = flatten(yaml.safe_load(dump_yaml(config)))
    keys = [*old, *(key for key in new if key not in old)]
    changed = [k for k in keys if old.get(k) != new.get(k) or (k in old) != (k in new)]
    if changed:
        lines = [f"  {k}: was {old.get(k)!r}, now {new.get(k)!r}" for k in changed]
        raise UsageError(
            f"the config differs from the one in '{path}':\n" + "\n".join(lines),
            "resume with the recorded config, or choose another --output",
        )


def clean(path: Path) -> None:
    """Remove what a killed process left under temporary names."""
    for folder in (path, path / "checkpoints"):
        for entry in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
