"""What scores, conditions, clips and pairs are."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa

from ft2.errors import UsageError

Dimension = Literal["motion", "lip", "quality"]
Store = Literal["motion", "lip", "quality", "fusion"]

DIMENSIONS: Final[tuple[Dimension, ...]] = ("motion", "lip", "quality")
STORES: Final[tuple[Store, ...]] = (*DIMENSIONS, "fusion")
LABELS: Final = ("A", "B", "tie")


@dataclass(frozen=True)
class Scores:
    """What a critic says about one clip: P(yes) per dimension, each in [0, 1]."""

    motion: float
    lip: float
    quality: float

    def __post_init__(self) -> None:
        """Refuse what is no probability, NaN included."""
        for name in DIMENSIONS:
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UsageError(
                    f"a {name} score of {value} is no probability",
                    hint="a Scorer returns P(yes) in [0, 1] for each dimension",
                )

    def get(self, dimension: Dimension) -> float:
        """Return P(yes) of one dimension."""
        return float(getattr(self, dimension))

    def values(self) -> tuple[float, float, float]:
        """Return (motion, lip, quality)."""
        return (self.motion, self.lip, self.quality)

    def answers(self, threshold: float = 0.5) -> tuple[bool, bool, bool]:
        """Return Yes (True) or No per dimension: P(yes) >= threshold."""
        return (
            self.motion >= threshold,
            self.lip >= threshold,
            self.quality >= threshold,
        )


@dataclass(frozen=True)
class Condition:
    """What a clip is generated from; one line of conditions.jsonl with its paths resolved."""

    condition_id: str
    identity_id: str
    audio_id: str
    portrait: Path
    audio: Path
    prompt: str
    split: str
    source_id: str = ""
    """The clip that portrait or sound was cut from, if any: no two splits share one."""


@dataclass(frozen=True)
class Generated:
    """One candidate that a generator wrote: which condition, which seed, which mp4 file."""

    condition_id: str
    seed: int
    video: Path


@dataclass(frozen=True)
class ClipRecord:
    """One generated clip with its condition; media stay memory-mapped until they are read."""

    clip_id: str
    """sha256 of the mp4 file."""
    condition_id: str
    identity_id: str
    audio_id: str
    reference_id: str
    prompt: str
    split: str
    model: str
    seed: int
    width: int
    height: int
    fps: float
    num_frames: int
    scores: Scores | None
    """What the critic said; None for a clip that came with labels and was never judged."""
    video: pa.Buffer
    """Bytes of the mp4 file, sound included."""
    audio: pa.Buffer
    """Bytes of a FLAC file, mono."""
    reference: pa.Buffer
    """Bytes of a PNG file: the portrait that the clip was generated from."""

    def score(self, dimension: Dimension) -> float:
        """Return P(yes) of one dimension, NaN for a clip that was never judged."""
        return math.nan if self.scores is None else self.scores.get(dimension)

    def write_media(self, directory: Path) -> tuple[Path, Path, Path]:
        """Write the media to `directory` and return the paths of video, audio and portrait."""
        directory.mkdir(parents=True, exist_ok=True)
        stem = self.clip_id[:16]
        paths = (
            directory / f"{stem}.mp4",
            directory / f"{self.audio_id}.flac",
            directory / f"{self.reference_id}.png",
        )
        for path, data in zip(paths, (self.video, self.audio, self.reference), strict=True):
            path.write_bytes(memoryview(data))
        return paths


@dataclass(frozen=True)
class PairRecord:
    """Two clips of one condition with a label per dimension ("A", "B", "tie" or None)."""

    pair_id: str
    condition_id: str
    clip_a: str
    clip_b: str
    labels: tuple[str | None, ...]
    """In the order of `DIMENSIONS`; None where nobody was asked."""
    scores_a: Scores | None
    scores_b: Scores | None
    stores: tuple[Store, ...]
    """Stores that use this pair: its decided dimensions within margin and cap, and "fusion"."""


@dataclass(frozen=True)
class Preference:
    """One training pair of a store, side by preference."""

    pair_id: str
    store: Store
    chosen: ClipRecord
    rejected: ClipRecord
    margin: float
    """Score of chosen minus rejected on the store's dimension; the smallest of all for "fusion".
    NaN where the labels came without scores."""


def preference_probability(score_a: float, score_b: float) -> float:
    """Return P(A preferred) in [0, 1] under Bradley-Terry on the log-odds of two scores.

    sigmoid(logit(a) - logit(b)) = a(1-b) / (a(1-b) + b(1-a)); one half when both are certain.
    """
    for_a = score_a * (1.0 - score_b)
    for_b = score_b * (1.0 - score_a)
    total = for_a + for_b
    return 0.5 if math.isclose(total, 0.0, abs_tol=1e-30) else for_a / total
