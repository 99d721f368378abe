"""The mouth of a puppet: jaw, lips, and what shows between the lips.

A mouth shape is a displacement of landmarks, linear in the four lip curves. The lips part along
a seam: pixels above it follow the upper lip, pixels below it the lower lip and the jaw, and the
opening between them is painted (cavity, teeth, tongue). Lengths are in face units: the distance
from the eyes to the mouth.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.puppet import topology as topo
from ft2.puppet.fields import Array, Spline, Window, invert, smoothstep, upsample

Image = NDArray[np.uint8]

LIP_CURVES = ("open", "width", "press", "tuck")
_STEP = 3


class Mouth:
    """Warps and paints the lower face of one portrait on its canvas.

    Args:
        landmarks: [478, >=2] canvas pixels of the portrait.
        unit: Face unit in pixels.
        canvas: Side of the canvas in pixels.
        skin: Median RGB of the cheeks, 0 to 255, by which teeth and tongue are lit.
    """

    def __init__(self, landmarks: Array, unit: float, canvas: int, skin: Array) -> None:
        self.points, self.unit = np.asarray(landmarks[:, :2], np.float32), unit
        level = float(skin.mean())
        tint = 0.65 + 0.35 * skin / max(level, 1.0)
        self._light = np.asarray(tint * (0.35 + 0.7 * level / 255.0), np.float32)
        self.window = _window(self.points, unit, canvas)
        extra = _frame_points(self.points, unit, canvas)
        common = [topo.LEFT_CORNER, topo.RIGHT_CORNER, *topo.JAW, *topo.JAW_BACK]
        common += [*topo.STILL, *topo.CHEEKS]
        self._upper = [*common, *topo.UPPER_INNER, *topo.UPPER_OUTER, *topo.CHIN[:2]]
        self._lower = [*common, *topo.LOWER_INNER, *topo.LOWER_OUTER, *topo.CHIN]
        self._num_extra = len(extra)
        self._splines = [
            Spline(np.concatenate([self.points[part], extra]), self.window, _STEP)
            for part in (self._upper, self._lower)
        ]
        self.basis = np.stack([lip_displacement(self.points, unit, c) for c in LIP_CURVES])
        self._fields = [
            np.stack([spline.coarse(self._pad(shape[part])) for shape in self.basis])
            for spline, part in zip(self._splines, (self._upper, self._lower), strict=True)
        ]
        x0, y0, x1, y1 = self.window
        grid = np.meshgrid(np.arange(x0, x1), np.arange(y0, y1))
        self._grid = np.stack(grid, -1).astype(np.float32)

    def _pad(self, shape: Array) -> Array:
        return np.concatenate([shape, np.zeros((self._num_extra, 2), np.float32)])

    def apply(self, image: Image, lips: Array) -> None:
        """Shape the mouth in `image` uint8 [canvas, canvas, C>=3] in place.

        Args:
            image: RGB (other channels are warped along).
            lips: Curve values [4] in the order of `LIP_CURVES`.
        """
        shape = np.tensordot(lips, self.basis, 1)
        fields = [np.tensordot(lips, field, 1) for field in self._fields]
        self._render(image, shape, fields)
        self._paint(image, shape, float(lips[1]))

    def reshape(self, image: Image, shape: Array) -> Image:
        """Return `image` with the landmarks moved by `shape` [478, 2] (nothing is painted)."""
        result = image.copy()
        parts = zip(self._splines, (self._upper, self._lower), strict=True)
        self._render(result, shape, [s.coarse(self._pad(shape[p])) for s, p in parts])
        return result

    def _render(self, image: Image, shape: Array, fields: list[Array]) -> None:
        upper, lower = (
            upsample(invert(np.asarray(f / _STEP, np.float32)) * _STEP, self.window, _STEP)
            for f in fields
        )
        below = self._below(self.points + shape)[..., None]
        source = self._grid - (upper + (lower - upper) * below)
        x0, y0, x1, y1 = self.window
        image[y0:y1, x0:x1] = cv2.remap(
            image, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )

    def _below(self, moved: Array) -> Array:
        """Return how much each pixel of the window belongs to the lower lip, [h, w] in [0, 1]."""
        ends = moved[[topo.INNER_LEFT, topo.INNER_RIGHT]]
        middle = (moved[topo.UPPER_INNER] + moved[topo.LOWER_INNER]) / 2
        seam = np.concatenate([ends[:1], middle, ends[1:]])
        x = self._grid[0, :, 0]
        line = np.interp(x, seam[:, 0], seam[:, 1])
        outside = np.maximum(np.maximum(ends[0, 0] - x, x - ends[1, 0]), 0.0)
        soft = 0.8 + 0.8 * outside
        return smoothstep((self._grid[..., 1] - line[None] + soft) / (2 * soft))

    def _paint(self, image: Image, shape: Array, spread: float) -> None:
        moved = self.points + shape
        top = moved[[topo.INNER_LEFT, *topo.UPPER_INNER, topo.INNER_RIGHT]]
        bottom = moved[[topo.INNER_LEFT, *topo.LOWER_INNER, topo.INNER_RIGHT]]
        gap = float((bottom[:, 1] - top[:, 1]).max())
        if gap < 0.6:
            return
        pad = 4
        x0, y0 = np.floor(np.minimum(top, bottom).min(0)).astype(int) - pad
        x1, y1 = np.ceil(np.maximum(top, bottom).max(0)).astype(int) + pad
        corner = np.array([x0, y0], np.float32)
        size = (int(y1 - y0), int(x1 - x0))
        bare = (1 + 0.75 * min(spread, 0.0)) * (0.45 + 0.55 * min(1.0, gap / (0.16 * self.unit)))
        paint, mask = _interior(top - corner, bottom - corner, size, self.unit, bare)
        patch = image[y0:y1, x0:x1, :3].astype(np.float32)
        mask = mask[..., None] * min(1.0, gap / 2.0)
        mixed = patch + (paint * self._light - patch) * mask
        image[y0:y1, x0:x1, :3] = np.clip(mixed, 0, 255)


def lip_displacement(points: Array, unit: float, curve: str) -> Array:
    """Return landmark displacements [478, 2] in pixels for curve value 1 (width: -1..1)."""
    centre = (points[topo.LEFT_CORNER] + points[topo.RIGHT_CORNER]) / 2
    half = max(float(points[topo.RIGHT_CORNER, 0] - points[topo.LEFT_CORNER, 0]) / 2, 1.0)
    t = np.clip((points[:, 0] - centre[0]) / half, -1.2, 1.2)
    arch = np.maximum(1 - np.abs(t) ** 2.2, 0.0) ** 0.7
    shape = np.zeros((len(points), 2), np.float32)
    if curve == "open":
        _open(shape, points, centre, t, arch)
    elif curve == "width":
        rings = [*topo.UPPER_INNER, *topo.LOWER_INNER, *topo.UPPER_OUTER, *topo.LOWER_OUTER]
        rings += [topo.LEFT_CORNER, topo.RIGHT_CORNER, topo.INNER_LEFT, topo.INNER_RIGHT]
        shape[rings, 0] = 0.15 * t[rings]
        shape[topo.CHEEKS, 0] = 0.05 * np.sign(t[topo.CHEEKS])
        shape[topo.UPPER_OUTER, 1] = 0.03 * arch[topo.UPPER_OUTER]
        shape[topo.LOWER_OUTER, 1] = -0.04 * arch[topo.LOWER_OUTER]
        shape[[topo.LEFT_CORNER, topo.RIGHT_CORNER], 1] = -0.03
    elif curve == "press":
        shape[topo.UPPER_OUTER, 1] = 0.055 * arch[topo.UPPER_OUTER]
        shape[topo.LOWER_OUTER, 1] = -0.075 * arch[topo.LOWER_OUTER]
        shape[topo.CHIN[2:], 1] = -0.03
    else:
        shape[topo.UPPER_INNER, 1] = -0.05 * arch[topo.UPPER_INNER]
        shape[topo.UPPER_OUTER, 1] = -0.04 * arch[topo.UPPER_OUTER]
        shape[topo.LOWER_OUTER, 1] = -0.10 * arch[topo.LOWER_OUTER]
        shape[topo.LOWER_INNER, 1] = 0.02 * arch[topo.LOWER_INNER]
        shape[topo.CHIN[2:], 1] = -0.02
    return np.asarray(shape * unit, np.float32)


def _open(shape: Array, points: Array, centre: Array, t: Array, arch: Array) -> None:
    shape[topo.LOWER_INNER, 1] = 0.36 * arch[topo.LOWER_INNER]
    shape[topo.LOWER_OUTER, 1] = 0.06 + 0.28 * arch[topo.LOWER_OUTER]
    shape[topo.UPPER_INNER, 1] = -0.05 * arch[topo.UPPER_INNER]
    shape[topo.UPPER_OUTER, 1] = -0.04 * arch[topo.UPPER_OUTER]
    corners = [topo.LEFT_CORNER, topo.RIGHT_CORNER, topo.INNER_LEFT, topo.INNER_RIGHT]
    shape[corners, 0] = -0.05 * np.sign(t[corners])
    shape[corners, 1] = 0.05
    shape[topo.CHIN, 1] = [0.26, 0.28, 0.30, 0.31, 0.33]
    jaw = np.abs(points[topo.JAW, 0] - centre[0]) / max(float(np.ptp(points[topo.JAW, 0])) / 2, 1.0)
    shape[topo.JAW, 1] = 0.26 * np.clip(1.05 - jaw**1.6, 0.0, 1.0)
    shape[topo.CHEEKS, 1] = 0.03


def _interior(
    top: Array, bottom: Array, size: tuple[int, int], unit: float, bare: float
) -> tuple[Array, Array]:
    """Paint the inside of the mouth: colour [h, w, 3] and coverage [h, w] in [0, 1].

    Teeth stand out by `bare` in [0, 1].
    """
    height, width = size
    x = np.arange(width, dtype=np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    roof = np.interp(x, top[:, 0], top[:, 1])
    floor = np.interp(x, bottom[:, 0], bottom[:, 1])
    inside = (x >= top[0, 0]) & (x <= top[-1, 0])
    above = smoothstep(np.asarray(y - roof + 0.5, np.float32))
    below = smoothstep(np.asarray(floor - y + 0.5, np.float32))
    cover = above * below * inside
    middle, half = (top[0, 0] + top[-1, 0]) / 2, max((top[-1, 0] - top[0, 0]) / 2, 1.0)
    t = (x - middle) / half
    paint = np.empty((height, width, 3), np.float32)
    paint[:] = (58, 20, 20)
    depth = float((floor - roof).max())
    tongue_top = floor - min(0.13 * unit, 0.5 * depth) * np.sqrt(np.maximum(1 - 1.6 * t**2, 0))
    _blend(paint, (168, 84, 84), smoothstep((y - tongue_top) / 3.0) * (np.abs(t) < 0.79))
    rows = np.maximum(1 - np.abs(t) ** 3, 0) ** 0.5
    upper = roof + min(0.115 * unit, 0.55 * depth + 0.01 * unit) * rows
    _blend(paint, (236, 228, 214), bare * smoothstep((upper - y) / 1.6 + 0.5) * (np.abs(t) < 0.86))
    lower = floor - 0.05 * unit * rows * min(1.0, depth / (0.25 * unit))
    _blend(paint, (205, 196, 184), bare * smoothstep((y - lower) / 1.6 + 0.5) * (np.abs(t) < 0.6))
    shade = 1 - 0.45 * np.abs(t) ** 2.5
    return np.asarray(paint * shade[None, :, None], np.float32), np.asarray(cover, np.float32)


def _blend(paint: Array, colour: tuple[int, int, int], weight: Array) -> None:
    paint += (np.array(colour, np.float32) - paint) * weight[..., None]


def _window(points: Array, unit: float, canvas: int) -> Window:
    oval = points[topo.OVAL]
    x0, x1 = oval[:, 0].min() - 0.25 * unit, oval[:, 0].max() + 0.25 * unit
    y0, y1 = points[6, 1], oval[:, 1].max() + 0.65 * unit
    low = [max(int(x0), 0), max(int(y0), 0)]
    return low[0], low[1], min(int(x1), canvas), min(int(y1), canvas)


def _frame_points(points: Array, unit: float, canvas: int) -> Array:
    """Return still points around the moving part: neck, temples and the edge of the window."""
    x0, y0, x1, y1 = _window(points, unit, canvas)
    chin = points[152]
    neck = [(chin[0] + dx * unit, chin[1] + 0.62 * unit) for dx in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    side = [(x, y) for x in (x0 - 2, x1 + 2) for y in np.linspace(y0, y1, 5)]
    edge = [(x, y0 - 2) for x in np.linspace(x0, x1, 5)]
    return np.array([*neck, *side, *edge], np.float32)
