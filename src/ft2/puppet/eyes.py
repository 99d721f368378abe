"""Blinks and brows of a puppet: lid skin slides over the eye, the brows lift."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.puppet import topology as topo
from ft2.puppet.fields import Array, Spline, Window

Image = NDArray[np.uint8]
_BESIDE = 6
_LASH = 1.6
"""Height in pixels of the row of lashes that stays dark when the lid comes down."""


class Eyes:
    """Warps the eye region of one portrait.

    Args:
        landmarks: [478, >=2] canvas pixels.
        unit: Face unit (eyes to mouth) in pixels.
        canvas: Side of the canvas in pixels.
    """

    def __init__(self, landmarks: Array, unit: float, canvas: int) -> None:
        points = np.asarray(landmarks[:, :2], np.float32)
        self.window = _window(points, unit, canvas)
        x0, y0, x1, y1 = self.window
        grid = np.meshgrid(np.arange(x0, x1), np.arange(y0, y1))
        self._grid = np.stack(grid, -1).astype(np.float32)
        self._brow = _brow_field(points, unit, self.window)
        lids = [
            (topo.LEFT_UPPER_LID, topo.LEFT_LOWER_LID, topo.LEFT_BROW),
            (topo.RIGHT_UPPER_LID, topo.RIGHT_LOWER_LID, topo.RIGHT_BROW),
        ]
        self._lids = [_lid(points, unit, *parts) for parts in lids]

    def apply(self, image: Image, blink: float, brow: float) -> None:
        """Close the lids by `blink` in [0, 1] and lift the brows by `brow`, in place.

        Args:
            image: uint8 [canvas, canvas, C].
            blink: 0 as in the portrait, 1 shut.
            brow: About -1 to 1.
        """
        if blink < 0.02 and abs(brow) < 0.02:
            return
        source = self._grid + (-brow) * self._brow
        if blink >= 0.02:
            for lid in self._lids:
                _close(source, self.window, lid, min(blink, 1.0))
        x0, y0, x1, y1 = self.window
        image[y0:y1, x0:x1] = cv2.remap(
            image, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )


Lid = tuple[int, Array, Array, Array]


def _lid(points: Array, unit: float, upper: list[int], lower: list[int], brow: list[int]) -> Lid:
    """Return first column, and per column: upper lid, lower lid, height of the lid's skin."""
    top, bottom = points[upper], points[lower]
    first, last = int(np.ceil(top[0, 0])), int(top[-1, 0])
    first, last = first - _BESIDE, last + _BESIDE
    columns = np.arange(first, last + 1)
    high = np.interp(columns, top[:, 0], top[:, 1])
    low = np.maximum(np.interp(columns, bottom[:, 0], bottom[:, 1]), high)
    room = float(top[:, 1].mean() - points[brow, 1].max())
    skin = np.full(len(columns), np.clip(0.6 * room, 0.06 * unit, 0.16 * unit))
    return first, high.astype(np.float32), low.astype(np.float32), skin.astype(np.float32)


def _close(source: Array, window: Window, lid: Lid, blink: float) -> None:
    first, high, low, skin = lid
    x0, y0 = window[:2]
    columns = slice(first - x0, first - x0 + len(high))
    across = np.clip(np.arange(len(high)) - _BESIDE + 0.5, 0, len(high) - 2 * _BESIDE)
    top = int((high - skin).min()) - y0
    rows = slice(max(top, 0), int(low.max()) - y0 + 2)
    y = source[rows, columns, 1]
    start = high - skin
    edge = high + 0.5 + blink * (low - high + 0.5)
    lash = _LASH * np.minimum(1.0, (low - high) / 4.0)
    middle = np.sin(np.pi * across / (len(high) - 2 * _BESIDE))
    smooth = skin * (1 - 0.45 * blink * middle) - lash
    inner = np.maximum(edge - lash - start, 1e-3)
    skinny = start + (y - start) * smooth / inner
    source_y = np.where(y < edge - lash, skinny, high + (y - edge))
    covered = (y > start) & (y < edge)
    shift = np.where(covered, source_y - y, 0.0).astype(np.float32)
    y += cv2.GaussianBlur(shift, (11, 1), 2.2, 0.1)


def _brow_field(points: Array, unit: float, window: Window) -> Array:
    x0, y0, x1, y1 = window
    brows = [*topo.LEFT_BROW, *topo.RIGHT_BROW]
    lids = [*topo.LEFT_UPPER_LID, *topo.RIGHT_UPPER_LID]
    lids += [*topo.LEFT_LOWER_LID[1:-1], *topo.RIGHT_LOWER_LID[1:-1]]
    forehead = [10, 338, 109, 151]
    border = [(x, y) for x in np.linspace(x0, x1, 5) for y in (y0 - 1, y1 + 1)]
    border += [(x, y) for x in (x0 - 1, x1 + 1) for y in np.linspace(y0, y1, 5)[1:-1]]
    controls = np.concatenate([points[[*brows, *lids, *forehead]], np.array(border, np.float32)])
    shape = np.zeros((len(controls), 2), np.float32)
    shape[: len(brows), 1] = -0.09 * unit
    shape[len(brows) + len(lids) + 3, 1] = -0.05 * unit
    return Spline(controls, window, ridge=1e-2).dense(shape)


def _window(points: Array, unit: float, canvas: int) -> Window:
    part = points[[*topo.LEFT_BROW, *topo.RIGHT_BROW, *topo.LEFT_LOWER_LID, *topo.RIGHT_LOWER_LID]]
    x0, y0 = part.min(0) - 0.3 * unit
    x1, y1 = part.max(0) + 0.3 * unit
    y0, y1 = y0 - 0.15 * unit, y1 - 0.1 * unit
    return max(int(x0), 0), max(int(y0), 0), min(int(x1), canvas), min(int(y1), canvas)
