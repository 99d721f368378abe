"""How far the shape of a face in a clip is from that in its portrait, by landmarks.

No network that compares faces takes part: landmarks (MediaPipe) of each frame are turned, scaled
and shifted onto those of the portrait, in three dimensions, and what is left is shape. Lips and
chin speak, so only landmarks above the tip of the nose count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOSE_TIP = 4


def fitted(points: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return points [N, D] turned, scaled and shifted as close to wanted [N, D] as can be.

    The least-squares similarity without reflection (Umeyama, IEEE TPAMI 13, 1991).
    """
    x, y = np.asarray(points, np.float64), np.asarray(wanted, np.float64)
    here, there = x - x.mean(0), y - y.mean(0)
    left, sizes, right = np.linalg.svd(there.T @ here)
    signs = np.ones(len(sizes))
    signs[-1] = np.sign(np.linalg.det(left) * np.linalg.det(right))
    turn = (left * signs) @ right
    scale = (sizes * signs).sum() / max(float((here**2).sum()), 1e-12)
    return np.asarray(scale * here @ turn.T + y.mean(0))


def shape_distance(points: NDArray[np.floating], portrait: NDArray[np.floating]) -> float:
    """Return the distance of a clip's mean face shape to a portrait's, 0 when they are equal.

    Args:
        points: landmarks [F, 478, 3] of the clip; frames without a face are nan.
        portrait: landmarks [478, 3] of the portrait.

    Returns:
        RMS distance of the landmarks in units of their spread; nan if most frames have no face.
    """
    known = ~np.isnan(points).any((1, 2))
    if known.mean() < 0.5:
        return float("nan")
    upper = portrait[:, 1] < portrait[NOSE_TIP, 1]
    wanted = np.asarray(portrait[upper], np.float64)
    shape = np.mean([fitted(frame[upper], wanted) for frame in points[known]], axis=0)
    spread = np.sqrt(((wanted - wanted.mean(0)) ** 2).sum(1).mean())
    return float(np.sqrt(((fitted(shape, wanted) - wanted) ** 2).sum(1).mean()) / spread)
