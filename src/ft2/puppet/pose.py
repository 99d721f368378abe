"""Head pose, breathing and background of a puppet, composed into the shown crop."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.puppet import topology as topo
from ft2.puppet.fields import Array, Spline, smoothstep
from ft2.puppet.portrait import CANVAS, MARGIN, UNIT, Identity

Image = NDArray[np.uint8]

POSE_CURVES = ("yaw", "pitch", "roll", "tx", "ty", "breathe")
"""Curves that move the person; units in `ft2.puppet.curves`."""


class Stage:
    """Moves the head over the background and crops to the shown picture.

    Args:
        identity: The face.
        side: Side in pixels of the rendered crop (before any downsampling).
    """

    def __init__(self, identity: Identity, side: int) -> None:
        inner = CANVAS - 2 * MARGIN
        self.side = side
        axis = (np.arange(side, dtype=np.float32) + 0.5) * inner / side - 0.5 + MARGIN
        self._grid = np.stack(np.meshgrid(axis, axis), -1).astype(np.float32)
        fields = _pose_fields(identity)
        place = self._grid
        sampled = [cv2.remap(f, place, None, cv2.INTER_LINEAR) for f in fields]
        self._basis = np.stack(sampled).reshape(len(fields), -1).astype(np.float32)
        self._background = identity.background

    def show(self, person: Image, pose: Array, background: float) -> Image:
        """Return the crop uint8 [side, side, 3].

        Args:
            person: uint8 [canvas, canvas, 4], RGB and matte.
            pose: Curve values [6] in the order of `POSE_CURVES`.
            background: Shift of the background in face units.
        """
        displacement = (pose.astype(np.float32) @ self._basis).reshape(self._grid.shape)
        front = cv2.remap(
            person,
            self._grid - displacement,
            None,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        back = self._behind(background)
        alpha = front[..., 3:].astype(np.float32) / 255.0
        mixed = back + (front[..., :3] - back) * alpha
        return np.asarray(mixed + 0.5, np.uint8)

    def _behind(self, shift: float) -> Array:
        scale = (CANVAS - 2 * MARGIN) / self.side
        start = 0.5 * scale - 0.5 + MARGIN
        place = np.array([[scale, 0, start - shift * UNIT], [0, scale, start]], np.float64)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        back = cv2.warpAffine(
            self._background,
            place,
            (self.side, self.side),
            flags=flags,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        return back.astype(np.float32)


def _pose_fields(identity: Identity) -> list[Array]:
    """Return forward displacement fields [canvas, canvas, 2] for a unit of each pose curve."""
    points = identity.landmarks
    grid = np.stack(np.meshgrid(np.arange(CANVAS), np.arange(CANVAS)), -1).astype(np.float32)
    chin = float(points[152, 1])
    centre = float((points[234, 0] + points[454, 0]) / 2)
    neck = smoothstep((chin + 1.3 * UNIT - grid[..., 1]) / (1.5 * UNIT))
    weight = 0.22 + 0.78 * neck
    depth = _depth(points) * weight
    pivot = np.array([centre, chin + 0.35 * UNIT], np.float32)
    zero = np.zeros_like(weight)
    roll = np.stack([-(grid[..., 1] - pivot[1]), grid[..., 0] - pivot[0]], -1) * neck[..., None]
    lever = UNIT * np.clip((pivot[1] - grid[..., 1]) / (2.5 * UNIT), 0, 1) * neck
    chest = smoothstep((grid[..., 1] - chin) / (0.8 * UNIT)) * UNIT
    return [
        np.stack([depth, zero], -1),
        np.stack([zero, 0.6 * depth + 0.55 * lever], -1),
        roll,
        np.stack([weight * UNIT, zero], -1),
        np.stack([zero, weight * UNIT], -1),
        np.stack([zero, -chest], -1),
    ]


def _depth(points: Array) -> Array:
    """Return how far each canvas pixel stands before the axis of the head, [canvas, canvas] px."""
    ears = points[[234, 454], 2].mean()
    used = [*topo.OVAL[::2], *topo.NOSE, *topo.CHEEKS, *topo.LEFT_BROW[:5], *topo.RIGHT_BROW[:5]]
    used += [61, 291, 0, 17, 50, 280, 33, 133, 362, 263]
    used = list(dict.fromkeys(used))
    height = np.maximum(ears - points[used, 2], 0.0) + 0.25 * UNIT
    middle = points[topo.OVAL, :2].mean(0)
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    rim = middle + np.stack([1.9 * np.cos(angles), 2.4 * np.sin(angles)], -1) * UNIT
    controls = np.concatenate([points[used, :2], rim]).astype(np.float32)
    values = np.zeros((len(controls), 2), np.float32)
    values[: len(used), 0] = height
    dense = Spline(controls, (0, 0, CANVAS, CANVAS), step=8, ridge=1e-2).dense(values)
    return np.asarray(np.clip(dense[..., 0], 0, 2.2 * UNIT), np.float32)
