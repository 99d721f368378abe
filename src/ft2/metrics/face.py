"""Is there a face, in how many frames, and is it one unbroken track."""

from __future__ import annotations

from ft2.faces import Box, face_box
from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured

SAME_FACE = 0.5
"""Boxes of one track overlap by at least this (intersection over union), as SyncNet's tracker."""


class Face:
    """Share of frames with a face, and number of unbroken tracks."""

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["face"]

    def measure(self, clip: Clip) -> Measured:
        """Count the face's tracks; a clip without any face has share 0 and no track."""
        share = float(clip.found.mean())
        return Measured({"face_share": share, "face_tracks": float(len(tracks(clip)))})


def tracks(clip: Clip) -> list[tuple[int, int]]:
    """Return first and last + 1 frame of each stretch in which the face stays in its place."""
    found: list[tuple[int, int]] = []
    last = None
    for number, (points, seen) in enumerate(zip(clip.landmarks, clip.found, strict=True)):
        box = face_box(points) if seen else None
        if box is not None and (last is None or overlap(last, box) < SAME_FACE):
            found.append((number, number + 1))
        elif box is not None:
            found[-1] = (found[-1][0], number + 1)
        last = box
    return found


def overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union, in [0, 1]."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / max(area - common, 1e-9)
