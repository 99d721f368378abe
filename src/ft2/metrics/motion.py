"""How the head and the picture around it move: statistics of tracked landmarks, no download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.faces import Landmarks, face_box
from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.puppet.judges import face_units, motion_parts

SHORTEST = 4
"""Fewer frames have no acceleration worth the name."""


class Motion:
    """Spread, peak acceleration, standstill and repeats of the head; change of the background."""

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["motion"]

    def measure(self, clip: Clip) -> Measured:
        """Measure the motion of one clip.

        Raises:
            UsageError: The face is lost, or the clip has fewer than `SHORTEST` frames.
        """
        if len(clip.frames) < SHORTEST:
            raise UsageError(f"{len(clip.frames)} frames are too few to measure motion")
        points = clip.steady_landmarks()
        found = motion_parts(head_place(points), clip.fps)
        return Measured(
            {
                "head_spread": found["spread"],
                "head_peak": found["peak"],
                "head_still": found["still"],
                "head_repeats": found["repeats"],
                "background_change": background_change(clip, points),
            }
        )


def head_place(points: Landmarks) -> NDArray[np.float32]:
    """Return right, down (face units) and roll (rad) of the head, [F, 3]."""
    right_eye, left_eye = points[:, [33, 133], :2].mean(1), points[:, [362, 263], :2].mean(1)
    middle = (right_eye + left_eye) / 2 / np.median(face_units(points))
    across = left_eye - right_eye
    roll = np.arctan2(across[:, 1], across[:, 0])
    return np.concatenate([middle - middle[0], roll[:, None]], 1).astype(np.float32)


def background_change(clip: Clip, points: Landmarks) -> float:
    """Return the mean change of grey levels outside the face's box, levels (of 255) per second.

    nan where the face fills the picture.
    """
    boxes = np.array([face_box(p) for p in points])
    height, width = clip.frames.shape[1:3]
    x0, y0 = np.floor(boxes[:, :2].min(0)).clip(0)
    x1, y1 = np.ceil(boxes[:, 2:].max(0))
    outside = np.ones((height, width), bool)
    outside[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = False
    if outside.mean() < 0.05:
        return float("nan")
    grey = clip.frames.astype(np.float32).mean(-1)[:, outside]
    return float(np.abs(np.diff(grey, axis=0)).mean() * clip.fps)
