"""What splits must not share, and what ratings must not say twice.

The dev split chooses the checkpoint and the thresholds, so that nothing of it may be in training or
in the test either.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ft2.errors import UsageError
from ft2.files import hash_file


class Rated(Protocol):
    """A rating of a clip or of a pair."""

    @property
    def videos(self) -> tuple[Path, ...]:
        """The files."""

    @property
    def labels(self) -> tuple[object, ...]:
        """An answer per dimension, or None."""

    @property
    def identity_id(self) -> str:
        """Whose face."""

    @property
    def utterance(self) -> str:
        """Which utterance."""

    @property
    def source_clip(self) -> str:
        """Which recording; empty when unknown."""

    @property
    def split(self) -> str:
        """Train, dev or test."""


def refuse_leaks(ratings: Sequence[Rated], path: Path) -> None:
    """Refuse a face, utterance, recording or clip that is in two splits.

    A clip is known by its file's content: a copy under another name is the same clip.

    Raises:
        UsageError: With the first such name, its splits and their number.
    """
    where: dict[Path, str] = {v.resolve(): r.split for r in ratings for v in r.videos}
    content = same_files(where)
    parts: dict[str, Callable[[Rated], Iterable[str]]] = {
        "identity_id": lambda r: (r.identity_id,),
        "utterance": lambda r: (r.utterance,),
        "source_clip": lambda r: (r.source_clip,) if r.source_clip else (),
        "videos": lambda r: (content.get(v.resolve(), str(v.resolve())) for v in r.videos),
    }
    for what, names_of in parts.items():
        splits: dict[str, set[str]] = defaultdict(set)
        for rating in ratings:
            for name in names_of(rating):
                splits[name].add(rating.split)
        both = [name for name, found in splits.items() if len(found) > 1]
        if both:
            first = min(both)
            copies = sorted(v.name for v, name in content.items() if name == first)
            name = repr(first) if first not in content.values() else " = ".join(copies)
            raise UsageError(
                f"{path}: {what} {name} is in {' and in '.join(_ordered(splits[first]))} "
                f"({len(both)} such)",
                "held-out figures need other faces and other speech than the training has, and "
                "dev, which chooses the checkpoint, others than the test",
            )


def _ordered(splits: set[str]) -> list[str]:
    return [name for name in ("train", "dev", "test") if name in splits]


def same_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of the files that are as long as another one; others have no copy.

    Files that are not there are left out.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        if path.is_file():
            by_size[path.stat().st_size].append(path)
    return {p: hash_file(p) for found in by_size.values() if len(found) > 1 for p in found}


def listed(problems: Sequence[str], most: int = 20) -> str:
    """Return problems as lines of a message, at most so many."""
    more = len(problems) - most
    return "\n".join([*problems[:most], *([f"... and {more} more"] if more > 0 else [])])


def refuse_contradictions(
    rated: Mapping[int, Rated], path: Path, dimensions: Sequence[str]
) -> None:
    """Refuse two rows about the same clip, or pair, that answer a question differently.

    Args:
        rated: Ratings by line number.
        path: The file, for the message.
        dimensions: Names of the labels.

    Raises:
        UsageError: With both line numbers of each.
    """
    swapped = {"A": "B", "B": "A"}
    said: dict[Hashable, tuple[int, object]] = {}
    problems = []
    for number, rating in rated.items():
        videos = [video.resolve() for video in rating.videos]
        turned = videos != sorted(videos)
        for dimension, given in zip(dimensions, rating.labels, strict=True):
            if given is None:
                continue
            label = swapped.get(str(given), given) if turned else given
            before, known = said.setdefault((*sorted(videos), dimension), (number, label))
            if known != label:
                names = " and ".join(video.name for video in rating.videos)
                problems.append(
                    f"{path}: rows {before} and {number} differ on {dimension}: {names}"
                )
    if problems:
        raise UsageError(
            listed(problems),
            "a clip has one row: `ft2 critic split` merges what several raters said",
        )
