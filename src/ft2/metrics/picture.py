"""Sharpness and noise of the face, from its pixels alone.

Neither is a measure of beauty: sharpness finds blur and low resolution and *rises* with noise and
compression blocks, noise finds noise and little else. Read the two together.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.faces import crop
from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured

_SECOND = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)


class Picture:
    """Sharpness (log variance of the Laplacian) and noise (Immerkaer's estimate) of the face."""

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["picture"]

    def measure(self, clip: Clip) -> Measured:
        """Measure frames 1 and on (frame 0 is the given portrait) where the face was found.

        Noise hides faces: one frame with a face is enough to know the place.

        Raises:
            UsageError: No frame has a face.
        """
        if not clip.found.any():
            raise UsageError("no frame has a face")
        points = clip.landmarks[clip.found][..., :2]
        (x0, y0), (x1, y1) = np.median(points.min(1), 0), np.median(points.max(1), 0)
        box = (float(x0), float(y0), float(x1), float(y1))
        size, height = max(round(x1 - x0), 8), max(round(y1 - y0), 8)
        frames = clip.frames[1:] if len(clip.frames) > 1 else clip.frames
        grey = [cv2.cvtColor(crop(f, box, size, height), cv2.COLOR_RGB2GRAY) for f in frames]
        return Measured(
            {
                "sharpness": float(np.mean([sharpness(g) for g in grey])),
                "noise": float(np.mean([noise(g) for g in grey])),
            }
        )


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Return log(1 + variance of the Laplacian) of uint8 [H, W]."""
    return float(np.log1p(cv2.Laplacian(grey, cv2.CV_64F).var()))


def noise(grey: NDArray[np.uint8]) -> float:
    """Return the standard deviation of white noise in grey levels, of uint8 [H, W].

    Immerkaer, Computer Vision and Image Understanding 64 (1996), with the median for the mean of
    absolute values so that edges count less: sigma = median |I * N| / (6 * 0.6745), N the
    difference of two Laplacians (its coefficients' norm is 6).
    """
    found = cv2.filter2D(grey.astype(np.float64), -1, _SECOND)[1:-1, 1:-1]
    return float(np.median(np.abs(found)) / (6 * 0.6745))
