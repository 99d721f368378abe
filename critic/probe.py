"""Whether files can be judged at all, asked before a model loads."""

from collections.abc import Sequence
from pathlib import Path

from ft2.errors import UsageError
from ft2.media.files import opened


def why_not(path: Path, *, silent: bool = False) -> str | None:
    """Return why a file cannot be judged, as far as its header tells; None if it may be.

    Args:
        path: The file.
        silent: Whether it may be without sound.
    """
    try:
        with opened(path) as container:
            if not container.streams.video:
                return f"no picture in {path}"
            if not silent and not container.streams.audio:
                return f"{path} has no sound: the critic judges lips against the voice"
    except UsageError as error:
        return error.message
    return None


def refuse_hopeless(paths: Sequence[Path], *, every: bool) -> None:
    """Refuse files that cannot be judged.

    Args:
        paths: Video files.
        every: Whether one such file is enough; otherwise only if none is left.

    Raises:
        UsageError: With the first file's reason.
    """
    reasons = [reason for reason in map(why_not, paths) if reason]
    if reasons and (every or len(reasons) == len(paths)):
        count = f"{len(reasons)} of {len(paths)}" if every else f"none of {len(paths)}"
        ending = "cannot be judged" if every else "can be judged"
        raise UsageError(
            f"{count} clips {ending}: {reasons[0]}", "give whole videos with sound and a face"
        )
