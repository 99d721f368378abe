"""What every metric of a clip has in common: facts about it, the clip it gets, what it returns.

A metric is a module named by what it looks at, with one class that has `facts` and `measure`.
Nothing here imports torch; models are loaded when the first clip is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ft2 import faces, media
from ft2.errors import UsageError
from ft2.metrics.published import Weights

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Column:
    """One number of a metric, as the table names it."""

    name: str
    label: str
    unit: str
    better: Better


@dataclass(frozen=True)
class Facts:
    """What a metric is, where it comes from, and where this one departs from it.

    Attributes:
        name: Name in ``metrics=[...]``.
        columns: The numbers it gives for each clip, or the one distance between two sets.
        paper: Who defined it.
        implementation: What the code follows.
        weights: What it needs.
        departs: Where it differs from the implementation that papers use.
        of_sets: It is a distance between two sets of clips; `measure` gives features.
        packages: What must be installed, by import name.
        extra: The extra that brings the packages.
        licence: Terms of a package where they forbid something.
    """

    name: str
    columns: tuple[Column, ...]
    paper: str
    implementation: str
    weights: tuple[Weights, ...] = ()
    departs: str = ""
    of_sets: bool = False
    packages: tuple[str, ...] = ("mediapipe",)
    extra: str = "metrics"
    licence: str = ""

    @property
    def terms(self) -> list[str]:
        """What the licences of package and weights forbid, one line each."""
        found = [f"{self.packages[0]}: {self.licence}"] if self.licence else []
        return found + [f"weights.{w.key}: {w.licence}" for w in self.weights if w.licence]


@dataclass(frozen=True)
class Clip:
    """A decoded clip; the face is tracked once for all metrics.

    Attributes:
        path: The video file.
        frames: uint8 [F, H, W, 3].
        fps: Frames per second.
        audio: float32 [N] in [-1, 1] at 16 kHz from the time of frame 0, or None.
    """

    path: Path
    frames: media.Frames
    fps: float
    audio: media.Audio | None

    @classmethod
    def read(cls, path: Path) -> Clip:
        """Decode a video file.

        Raises:
            UsageError: It is missing or cannot be decoded.
        """
        video = media.read_video(path)
        return cls(path, video.frames, video.fps, video.audio)

    @cached_property
    def landmarks(self) -> NDArray[np.float32]:
        """Landmarks float32 [F, 478, 3] in pixels, nan where no face was found."""
        return faces.track(self.frames)

    @property
    def found(self) -> NDArray[np.bool_]:
        """In which frames a face was found, bool [F]."""
        return np.isfinite(self.landmarks[:, 0, 0])

    def steady_landmarks(self) -> NDArray[np.float32]:
        """Return the landmarks with gaps filled linearly, [F, 478, 3].

        Raises:
            UsageError: The face is lost in more than a third of the frames.
        """
        found, points = self.found, self.landmarks
        if found.mean() < 2 / 3:
            raise UsageError(f"no face in {int((~found).sum())} of {len(found)} frames")
        if found.all():
            return points
        times, flat = np.arange(len(found)), points.reshape(len(found), -1)
        filled = [np.interp(times, times[found], column[found]) for column in flat.T]
        return np.stack(filled, 1).reshape(points.shape).astype(np.float32)

    def need_audio(self) -> media.Audio:
        """Return the sound.

        Raises:
            UsageError: The video has none.
        """
        if self.audio is None:
            raise UsageError("the video has no sound")
        return self.audio


@dataclass(frozen=True)
class Measured:
    """What a metric found in one clip.

    Attributes:
        values: Number of each column; nan where it is not defined.
        features: Rows [N, D] whose distribution is compared between sets, or None.
    """

    values: dict[str, float] = field(default_factory=dict)
    features: NDArray[np.float32] | None = None


class Metric(Protocol):
    """Something that measures a clip."""

    @property
    def facts(self) -> Facts:
        """What it is."""

    def measure(self, clip: Clip) -> Measured:
        """Measure one clip.

        Raises:
            UsageError: It cannot be measured on this clip, and why.
        """
