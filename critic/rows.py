"""Rows of a ``ratings.jsonl``: their keys, and the checks that clips and pairs share."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ft2.errors import UsageError
from ft2.files import read_lines

KEYS = ("video", "identity_id", "audio_id", "split", "source")
PAIR_KEYS = ("video_a", "video_b", *KEYS[1:])
NOTES = ("source_clip", "caption", "defects")
"""Keys that a rating of one clip may have besides; the last two are not read."""
PAIR_NOTES = ("source_clip", "share", "margin")
"""Keys that a rating of a pair may have besides."""
FACTS = frozenset({*KEYS, *PAIR_KEYS, *NOTES, *PAIR_NOTES})
"""Keys of a row that are no dimensions."""

Row = dict[str, Any]
MIXED = (
    "a file rates clips or pairs (`ft2 critic split` writes two files); pairs train with a pair "
    "objective: objective=rao_kupper"
)


def rated_dimensions(path: Path) -> list[str]:
    """Return what a ``ratings.jsonl`` rates, sorted.

    Raises:
        UsageError: No such file, or a line that is no object.
    """
    return sorted(set().union(*(row for row, _ in numbered_rows(path))) - FACTS)


def known_dimensions(
    rows: Sequence[tuple[Row, int]], path: Path, dimensions: Sequence[str]
) -> frozenset[str]:
    """Return those of the dimensions that some row has; the others were not asked of anybody.

    Raises:
        UsageError: The rows are about other dimensions only.
    """
    there = set().union(*(row for row, _ in rows)) - FACTS
    if there and not there & set(dimensions):
        asked, first = ", ".join(dimensions), min(there)
        raise UsageError(
            f"{path} rates {', '.join(sorted(there))}, asked is about {asked}",
            f"ask what was rated: \"questions={{{first}: 'Is it ...?'}}\"",
        )
    return frozenset(there & set(dimensions))


def numbered_rows(path: Path) -> Iterator[tuple[Row, int]]:
    """Yield (row, line number) of a JSONL of objects."""
    if not path.is_file():
        raise UsageError(
            f"there is no ratings file {path}", "make one with `ft2 puppet build` or annotate clips"
        )
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{where}: a rating is an object, got {type(row).__name__}")
        yield row, number


def numbers_of(
    row: Row, name: str, dimensions: Sequence[str], bounds: tuple[float, float], where: str
) -> tuple[float | None, ...]:
    """Return the share or margin of each dimension."""
    given = row.get(name, {})
    numbers = given.values() if isinstance(given, dict) else [given]
    if not isinstance(given, dict) or not all(
        is_number(v) and math.isfinite(v) and bounds[0] <= v <= bounds[1] for v in numbers
    ):
        quoted = any(isinstance(v, str) for v in numbers)
        raise UsageError(
            f"{where}: {name} is a number per dimension, got {given!r}",
            "write numbers without quotes" if quoted else 'write {"lip": 0.5}',
        )
    return tuple(given.get(d) for d in dimensions)


def is_number(value: object) -> bool:
    """Return whether a value is a number, true and false being none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_choice(label: object) -> bool:
    """Return whether a value may be a pair's label."""
    return label is None or (isinstance(label, str) and label in ("A", "B", "tie"))


def check_keys(
    row: Row,
    where: str,
    needed: Collection[str],
    notes: Collection[str],
    is_answer: Callable[[object], bool],
) -> None:
    """Refuse keys that are missing, or neither known nor answers on another dimension."""
    other = {key for key in set(row) - FACTS - set(needed) if is_answer(row[key])}
    keys = sorted((set(row) - set(notes) - other) ^ set(needed))
    if keys:
        raise UsageError(f"{where}: missing or unknown keys: {', '.join(keys)}")


def check_split(row: Row, where: str) -> None:
    """Refuse a split that is none."""
    if row["split"] not in ("train", "dev", "test"):
        raise UsageError(f"{where}: split must be train, dev or test, got {row['split']!r}")
