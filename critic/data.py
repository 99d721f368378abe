"""Ratings on disk: read strictly, refused where train and test share a face or a voice."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ft2.critic.names import Negative
from ft2.errors import UsageError
from ft2.files import read_lines
from ft2.pairs import DIMENSIONS

Split = Literal["train", "dev", "test"]
KEYS = ("video", "identity_id", "audio_id", "split", "source")
PAIR_KEYS = ("video_a", "video_b", *KEYS[1:])
NOTES = ("caption", "defects")
"""Keys that a puppet's rating may have besides; training does not read them."""


@dataclass(frozen=True)
class Rating:
    """What raters said about one clip."""

    video: Path
    """The mp4 file."""
    labels: tuple[bool | float | None, ...]
    """Yes, No or unrated for each dimension (motion, lip, quality); or opinion scores."""
    identity_id: str
    """Whose face."""
    audio_id: str
    """Which utterance; what follows an ``@`` says which part of it."""
    split: str
    """``train``, ``dev`` or ``test``."""
    source: str
    """Who rated: ``puppet`` (known defects), ``judges`` (ground truth of generated clips) or
    ``human``."""
    spoilt: tuple[Negative, int] | None = None
    """Defect that is put into the clip when it is read, and its seed."""

    @property
    def videos(self) -> tuple[Path]:
        """The mp4 file."""
        return (self.video,)

    @property
    def utterance(self) -> str:
        """The utterance without its part."""
        return self.audio_id.split("@")[0]


@dataclass(frozen=True)
class PairRating:
    """Which of two clips raters preferred."""

    videos: tuple[Path, Path]
    """The mp4 files of side A and B."""
    labels: tuple[str | None, ...]
    """``A``, ``B``, ``tie`` or uncompared for each dimension."""
    shares: tuple[float | None, ...]
    """Share of raters for A, a tie counting half, in [0, 1]."""
    margins: tuple[float | None, ...]
    """Mean opinion score of A less that of B."""
    identity_id: str
    """Whose face."""
    utterance: str
    """Which utterance."""
    split: str
    """``train``, ``dev`` or ``test``."""
    source: str
    """Who rated."""


def holds_pairs(path: Path) -> bool:
    """Return whether a ratings file rates pairs of clips: its first line decides."""
    if not path.is_file():
        return False
    first = next((line for line in read_lines(path) if line.strip()), "")
    return '"video_a"' in first


def read_pair_ratings(path: Path, dimensions: Sequence[str] = DIMENSIONS) -> list[PairRating]:
    """Return the ratings of a ``ratings.jsonl`` of pairs, all splits.

    Raises:
        UsageError: As `read_ratings`.
    """
    ratings = [_parse_pair(*found, path, dimensions) for found in _lines(path)]
    _refuse_leaks(ratings, path)
    return ratings


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
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


def _parse_pair(
    row: dict[str, Any], number: int, path: Path, dimensions: Sequence[str]
) -> PairRating:
    where = f"{path}:{number}"
    keys = sorted((set(row) - {"share", "margin"}) ^ {*PAIR_KEYS, *dimensions})
    if keys:
        raise UsageError(f"{where}: missing or unknown keys: {', '.join(keys)}")
    labels = tuple(row[d] for d in dimensions)
    if any(label not in (None, "A", "B", "tie") for label in labels):
        raise UsageError(f"{where}: an answer is A, B, tie or null, got {list(labels)}")
    _check_split(row, where)
    videos = (path.parent / str(row["video_a"]), path.parent / str(row["video_b"]))
    for video in videos:
        if not video.is_file():
            raise UsageError(f"{where}: there is no video {video}")
    numbers: dict[str, tuple[float | None, ...]] = {}
    for name, low, high in (("share", 0.0, 1.0), ("margin", -math.inf, math.inf)):
        given = row.get(name, {})
        good = isinstance(given, dict) and all(
            isinstance(v, int | float) and low <= v <= high for v in given.values()
        )
        if not good:
            raise UsageError(f"{where}: {name} is a number per dimension, got {given!r}")
        numbers[name] = tuple(given.get(d) for d in dimensions)
    utterance = str(row["audio_id"]).split("@")[0]
    names = (str(row["identity_id"]), utterance, str(row["split"]), str(row["source"]))
    return PairRating(videos, labels, numbers["share"], numbers["margin"], *names)


def _check_split(row: dict[str, Any], where: str) -> None:
    if row["split"] not in ("train", "dev", "test"):
        raise UsageError(f"{where}: split must be train, dev or test, got {row['split']!r}")


def read_ratings(
    path: Path,
    split: Split | None = None,
    dimensions: Sequence[str] = DIMENSIONS,
    *,
    numbers: bool = False,
) -> list[Rating]:
    """Return the ratings of a ``ratings.jsonl``, all or of one split.

    Args:
        path: The file.
        split: Which split; None is all.
        dimensions: The keys of the answers, in the order of `Rating.labels`.
        numbers: Whether answers are opinion scores >= 0 instead of true and false.

    Raises:
        UsageError: No such file; a line that is not what it must be (its number is named); a
            missing video; a split that shares a face or an utterance with another.
    """
    ratings = [_parse(*found, path, dimensions, numbers) for found in _lines(path)]
    _refuse_leaks(ratings, path)
    chosen = [r for r in ratings if split is None or r.split == split]
    if not chosen:
        raise UsageError(
            f"{path} has no ratings of split {split or 'any'}",
            f"splits there: {', '.join(sorted({r.split for r in ratings})) or 'none'}",
        )
    return chosen


def _parse(
    row: dict[str, Any], number: int, path: Path, dimensions: Sequence[str], numbers: bool
) -> Rating:
    where = f"{path}:{number}"
    if "video_a" in row:
        raise UsageError(
            f"{where}: this rates a pair of clips",
            "train with a pair objective: objective=rao_kupper; do not mix pairs and single clips",
        )
    keys = sorted((set(row) - set(NOTES)) ^ {*KEYS, *dimensions})
    if keys:
        raise UsageError(f"{where}: missing or unknown keys: {', '.join(keys)}")
    labels = tuple(row[d] for d in dimensions)
    if not all(label is None or _is_answer(label, numbers) for label in labels):
        what = "a number >= 0" if numbers else "true, false"
        raise UsageError(f"{where}: an answer is {what} or null, got {list(labels)}")
    _check_split(row, where)
    video = path.parent / str(row["video"])
    if not video.is_file():
        raise UsageError(f"{where}: there is no video {video}")
    face, voice, split, source = (str(row[key]) for key in KEYS[1:])
    return Rating(video, labels, face, voice, split, source)


def _is_answer(label: object, numbers: bool) -> bool:
    if numbers:
        return not isinstance(label, bool) and isinstance(label, int | float) and label >= 0
    return isinstance(label, bool)


def _refuse_leaks(ratings: Sequence[Rating] | Sequence[PairRating], path: Path) -> None:
    """Refuse a face, utterance or video that is in training and in the test."""
    for what in ("identity_id", "utterance", "videos"):
        seen: dict[str, set[str]] = {"train": set(), "test": set(), "dev": set()}
        for r in ratings:
            found = getattr(r, what)
            seen[r.split] |= set(map(str, found)) if isinstance(found, tuple) else {found}
        both = sorted(seen["train"] & seen["test"])
        if both:
            raise UsageError(
                f"{path}: {what} {both[0]!r} is in train and in test ({len(both)} such)",
                "held-out figures need other faces and other speech than the training has",
            )


def other_voice(utterances: np.ndarray[Any, Any], rng: torch.Generator) -> Tensor:
    """Return for each row an index of a random row with another utterance, int64 [N].

    Raises:
        UsageError: There is only one utterance.
    """
    if len(set(utterances.tolist())) < 2:
        raise UsageError("all clips have the same voice", "rate clips of two utterances or more")
    count = len(utterances)
    index = torch.randint(count, (count,), generator=rng)
    while True:
        same = torch.from_numpy(utterances[index.numpy()] == utterances)
        if not bool(same.any()):
            return index
        index = torch.where(same, torch.randint(count, (count,), generator=rng), index)
