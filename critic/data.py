"""Ratings on disk: read strictly, refused where two splits share a face or a voice."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ft2.critic.leaks import refuse_contradictions, refuse_leaks
from ft2.critic.names import Negative
from ft2.critic.rows import (
    KEYS,
    MIXED,
    NOTES,
    PAIR_KEYS,
    PAIR_NOTES,
    Row,
    check_keys,
    check_split,
    is_choice,
    is_number,
    known_dimensions,
    numbered_rows,
    numbers_of,
)
from ft2.errors import UsageError
from ft2.files import read_lines
from ft2.pairs import DIMENSIONS

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Rating:
    """What raters said about one clip."""

    video: Path
    """The mp4 file."""
    labels: tuple[bool | float | None, ...]
    """Yes, No or unrated for each dimension that was asked for; or opinion scores."""
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
    source_clip: str = ""
    """The recording that the clip was cut from or made after; empty when unknown."""

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
    source_clip: str = ""
    """The recording that the clips were made after; empty when unknown."""


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
    rows = list(numbered_rows(path))
    there = known_dimensions(rows, path, dimensions)
    found = {number: _parse_pair(row, number, path, dimensions, there) for row, number in rows}
    refuse_leaks(list(found.values()), path)
    refuse_contradictions(found, path, dimensions)
    return list(found.values())


def _parse_pair(
    row: Row, number: int, path: Path, dimensions: Sequence[str], there: Collection[str]
) -> PairRating:
    where = f"{path}:{number}"
    if "video" in row:
        raise UsageError(f"{where}: this rates one clip, line 1 a pair", MIXED)
    check_keys(row, where, {*PAIR_KEYS, *there}, PAIR_NOTES, is_choice)
    labels = tuple(row.get(d) for d in dimensions)
    if not all(map(is_choice, labels)):
        raise UsageError(f"{where}: an answer is A, B, tie or null, got {list(labels)}")
    check_split(row, where)
    videos = (path.parent / str(row["video_a"]), path.parent / str(row["video_b"]))
    for video in videos:
        if not video.is_file():
            raise UsageError(f"{where}: there is no video {video}")
    shares = numbers_of(row, "share", dimensions, (0.0, 1.0), where)
    margins = numbers_of(row, "margin", dimensions, (-math.inf, math.inf), where)
    utterance = str(row["audio_id"]).split("@")[0]
    names = (str(row["identity_id"]), utterance, str(row["split"]), str(row["source"]))
    return PairRating(videos, labels, shares, margins, *names, str(row.get("source_clip") or ""))


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
        dimensions: The keys of the answers, in the order of `Rating.labels`. A key that no row has
            is unrated throughout; answers on other dimensions are left out.
        numbers: Whether answers are opinion scores >= 0 instead of true and false.

    Raises:
        UsageError: No such file; a line that is not what it must be (its number is named); a
            missing video; two rows that contradict each other; a split that shares a face, an
            utterance, a recording or a clip with another.
    """
    rows = list(numbered_rows(path))
    there = known_dimensions(rows, path, dimensions)
    found = {n: _parse(row, n, path, dimensions, there, numbers) for row, n in rows}
    ratings = list(found.values())
    refuse_leaks(ratings, path)
    if not numbers:
        refuse_contradictions(found, path, dimensions)
    chosen = [r for r in ratings if split is None or r.split == split]
    if not chosen:
        raise UsageError(
            f"{path} has no ratings of split {split or 'any'}",
            f"splits there: {', '.join(sorted({r.split for r in ratings})) or 'none'}",
        )
    return chosen


def _parse(
    row: Row,
    number: int,
    path: Path,
    dimensions: Sequence[str],
    there: Collection[str],
    numbers: bool,
) -> Rating:
    where = f"{path}:{number}"
    if "video_a" in row:
        raise UsageError(f"{where}: this rates a pair of clips", MIXED)
    is_answer = partial(_is_answer, numbers=numbers)
    check_keys(row, where, {*KEYS, *there}, NOTES, is_answer)
    labels = tuple(row.get(d) for d in dimensions)
    if not all(map(is_answer, labels)):
        what = "a number >= 0" if numbers else "true, false"
        raise UsageError(f"{where}: an answer is {what} or null, got {list(labels)}")
    check_split(row, where)
    video = path.parent / str(row["video"])
    if not video.is_file():
        raise UsageError(f"{where}: there is no video {video}")
    face, voice, split, source = (str(row[key]) for key in KEYS[1:])
    made_after = str(row.get("source_clip") or "")
    return Rating(video, labels, face, voice, split, source, source_clip=made_after)


def _is_answer(label: object, *, numbers: bool) -> bool:
    if numbers and is_number(label):
        return bool(label >= 0)  # type: ignore[operator]
    return label is None or (isinstance(label, bool) and not numbers)


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
