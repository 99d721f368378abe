"""Ratings on disk: read strictly, refused where train and test share a face or a voice."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS

Split = Literal["train", "dev", "test"]
KEYS = ("video", "identity_id", "audio_id", "split", "source")
NOTES = ("caption", "defects")
"""Keys that a puppet's rating may have besides; training does not read them."""


@dataclass(frozen=True)
class Rating:
    """What raters said about one clip."""

    video: Path
    """The mp4 file."""
    labels: tuple[bool | None, ...]
    """Yes, No or unrated for each dimension (motion, lip, quality)."""
    identity_id: str
    """Whose face."""
    audio_id: str
    """Which utterance; what follows an ``@`` says which part of it."""
    split: str
    """``train``, ``dev`` or ``test``."""
    source: str
    """Who rated: ``puppet`` (known defects), ``judges`` (ground truth of generated clips) or
    ``human``."""

    @property
    def utterance(self) -> str:
        """The utterance without its part."""
        return self.audio_id.split("@")[0]


def read_ratings(
    path: Path, split: Split | None = None, dimensions: Sequence[str] = DIMENSIONS
) -> list[Rating]:
    """Return the ratings of a ``ratings.jsonl``, all or of one split.

    Args:
        path: The file.
        split: Which split; None is all.
        dimensions: The keys of the answers, in the order of `Rating.labels`.

    Raises:
        UsageError: No such file; a line that is not what it must be (its number is named); a
            missing video; a split that shares a face or an utterance with another.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no ratings file {path}", "make one with `ft2 puppet build` or annotate clips"
        )
    ratings = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            ratings.append(_parse(line, path, number, dimensions))
    _refuse_leaks(ratings, path)
    chosen = [r for r in ratings if split is None or r.split == split]
    if not chosen:
        raise UsageError(
            f"{path} has no ratings of split {split or 'any'}",
            f"splits there: {', '.join(sorted({r.split for r in ratings})) or 'none'}",
        )
    return chosen


def _parse(line: str, path: Path, number: int, dimensions: Sequence[str]) -> Rating:
    where = f"{path}:{number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a rating is an object, got {type(row).__name__}")
    if "video_a" in row:
        raise UsageError(
            f"{where}: this rates a pair of clips", "the critic is trained on ratings of one clip"
        )
    keys = sorted((set(row) - set(NOTES)) ^ {*KEYS, *dimensions})
    if keys:
        raise UsageError(f"{where}: missing or unknown keys: {', '.join(keys)}")
    labels = tuple(row[d] for d in dimensions)
    if any(label is not None and not isinstance(label, bool) for label in labels):
        raise UsageError(f"{where}: an answer is true, false or null, got {list(labels)}")
    if row["split"] not in ("train", "dev", "test"):
        raise UsageError(f"{where}: split must be train, dev or test, got {row['split']!r}")
    video = path.parent / str(row["video"])
    if not video.is_file():
        raise UsageError(f"{where}: there is no video {video}")
    names = (str(row[key]) for key in ("identity_id", "audio_id", "split", "source"))
    return Rating(video, labels, *names)


def _refuse_leaks(ratings: Sequence[Rating], path: Path) -> None:
    """Refuse a face, utterance or video that is in training and in the test."""
    for what in ("identity_id", "utterance", "video"):
        seen = {str(getattr(r, what)) for r in ratings if r.split == "train"}
        both = sorted(seen & {str(getattr(r, what)) for r in ratings if r.split == "test"})
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
