"""Opening media files with errors that a person understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from ft2.errors import UsageError


def require_file(path: str | Path) -> None:
    """Raise UsageError unless `path` is a file."""
    if not Path(path).is_file():
        raise UsageError(f"no such file: {path}", "check the path")


def unreadable(path: str | Path, error: Exception) -> UsageError:
    """Return the error for a file that cannot be decoded."""
    return UsageError(
        f"cannot decode {path} ({error})",
        "the file is damaged, cut off or not audio or video",
    )


def opened(path: str | Path) -> Any:
    """Return the PyAV input container of `path` (its type is private to PyAV)."""
    require_file(path)
    try:
        # an absolute path: FFmpeg would read "concat:x.wav" as a protocol
        return av.open(str(Path(path).resolve()))
    except (FFmpegError, ValueError) as error:
        raise unreadable(path, error) from error
