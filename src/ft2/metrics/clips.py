"""Which clips a folder or run has, which failed, and which of two sets belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft2.errors import UsageError
from ft2.files import read_json

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
RESULTS = "results.json"
"""Summary of ``ft2 generate --batch``: also names the rows that failed."""


@dataclass(frozen=True)
class Entry:
    """One clip of a set, or one that could not be made.

    Attributes:
        name: File name without its ending, or the row's name.
        condition: What it was made of; clips of one condition are not independent.
        key: What the clips of two sets are matched by.
        path: The file; None where there is none.
        error: Why there is none.
    """

    name: str
    condition: str
    key: str
    path: Path | None = None
    error: str | None = None


def find_clips(source: Path, pattern: str) -> list[Entry]:
    """Return the clips of a video file, a folder of videos, or a run, sorted by name.

    A clip made by ``ft2 generate`` has a record beside it: its condition is the portrait and the
    sound (by their hashes), its key that and the seed. Any other clip goes by its name.

    Args:
        source: A video file, or a folder that has videos in it.
        pattern: Regular expression; its first group is the condition in a clip's name.

    Raises:
        UsageError: Nothing there, no videos in it, or two clips with one key.
    """
    if source.is_file():
        if source.suffix.lower() not in SUFFIXES:
            raise UsageError(f"'{source}' is no video", f"give {', '.join(SUFFIXES)} or a folder")
        return [_entry(source, pattern)]
    if not source.is_dir():
        raise UsageError(f"there is no file or folder '{source}'", "check the path")
    found = [_entry(p, pattern) for p in sorted(source.iterdir()) if _is_video(p)]
    found += _failed_rows(source / RESULTS)
    if not any(entry.path for entry in found):
        raise UsageError(f"no videos in '{source}'", _elsewhere(source))
    _check_keys(found)
    return sorted(found, key=lambda entry: entry.name)


def _is_video(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in SUFFIXES and path.is_file() and not hidden


def _entry(path: Path, pattern: str) -> Entry:
    record = path.with_suffix(".json")
    if record.is_file():
        known = read_json(record)
        try:
            parts = [known["inputs"][name]["sha256"][:16] for name in ("portrait", "audio")]
            condition = "-".join(parts)
            return Entry(path.stem, condition, f"{condition} {known['config']['seed']}", path)
        except (KeyError, TypeError):
            pass
    found = re.match(pattern, path.stem)
    return Entry(path.stem, (found and found[1]) or path.stem, path.stem, path)


def _failed_rows(place: Path) -> list[Entry]:
    if not place.is_file():
        return []
    rows = read_json(place).get("rows", {})
    failed = {n: row for n, row in rows.items() if isinstance(row, Mapping) and not row.get("done")}
    return [Entry(n, n, n, error=str(row.get("error", "failed"))) for n, row in failed.items()]


def _elsewhere(source: Path) -> str:
    """Return a hint that names folders below which have videos."""
    folders = sorted({p.parent for p in source.rglob("*") if _is_video(p)})
    if not folders:
        return "give a folder with mp4 files, such as the output of ft2 generate --batch"
    return f"but there are some in {', '.join(map(str, folders[:5]))}: give one of these folders"


def _check_keys(found: Sequence[Entry]) -> None:
    known: dict[str, str] = {}
    for entry in found:
        if entry.key in known:
            raise UsageError(
                f"'{entry.name}' and '{known[entry.key]}' have the same inputs and the same seed",
                "put each policy's clips into a folder of its own",
            )
        known[entry.key] = entry.name


def match(run: Sequence[Entry], other: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Return the clips of both sets that belong together, in the order of `run`.

    Raises:
        UsageError: No clip of one set has a partner in the other.
    """
    by_key: Mapping[str, Entry] = {entry.key: entry for entry in other}
    pairs = [(entry, by_key[entry.key]) for entry in run if entry.key in by_key]
    if not pairs:
        by_name = {entry.name: entry for entry in other}
        pairs = [(entry, by_name[entry.name]) for entry in run if entry.name in by_name]
    if not pairs:
        names = [", ".join(entry.name for entry in entries[:3]) for entries in (run, other)]
        raise UsageError(
            f"the folders do not match: no clip of one ({names[0]}, ...) is in the other "
            f"({names[1]}, ...)",
            "clips match by portrait, sound and seed (ft2 generate), else by file name",
        )
    return pairs


def format_remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what to know about the formats of one set of measured clips.

    Args:
        rows: Per clip ``width``, ``height``, ``fps``, ``frames``; None where it failed.
    """
    remarks = []
    for names, what in ((("width", "height"), "sizes"), (("fps",), "frame rates"),
                        (("frames",), "lengths")):  # fmt: skip
        kinds = sorted({tuple(r[n] for n in names) for r in rows if r.get("frames")})
        if len(kinds) > 1:
            shown = [("x".join(f"{v:g}" for v in kind)) for kind in (kinds[0], kinds[-1])]
            remarks.append(f"clips have {len(kinds)} {what}, from {shown[0]} to {shown[1]}")
    return remarks
