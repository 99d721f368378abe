"""Smooth displacement fields over the portrait canvas, linear in a few control displacements.

A thin-plate spline (Bookstein 1989) through control points is linear in their displacements, so
one matrix per identity turns any control displacements into a dense field.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in canvas pixels."""


class Spline:
    """Thin-plate spline through fixed control points, evaluated on a coarse grid of a window."""

    def __init__(self, controls: Array, window: Window, step: int = 4, ridge: float = 1e-3) -> None:
        """Factor the spline.

        Args:
            controls: Control points [N, 2] (x, y) in canvas pixels; no two alike.
            window: The part of the canvas for which fields are made.
            step: Grid spacing in pixels; fields are interpolated bicubically in between.
            ridge: Smoothing that lets near-coincident points disagree a little.
        """
        self.window, self.step = window, step
        self.controls = np.asarray(controls, np.float64)
        count = len(controls)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = _kernel(self.controls, self.controls) + ridge * np.eye(count)
        system[:count, count:] = _affine(self.controls)
        system[count:, :count] = system[:count, count:].T
        self._inverse = np.linalg.inv(system)[:, :count]
        x0, y0, x1, y1 = window
        columns = np.arange(x0, x1 + step, step, dtype=np.float64)
        rows = np.arange(y0, y1 + step, step, dtype=np.float64)
        self._shape = (len(rows), len(columns))
        grid = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
        self._matrix = self._weights(grid)

    def _weights(self, points: NDArray[np.float64]) -> Array:
        basis = np.concatenate([_kernel(points, self.controls), _affine(points)], 1)
        return (basis @ self._inverse).astype(np.float32)

    def coarse(self, displacements: Array) -> Array:
        """Return the field [rows, columns, 2] on the coarse grid for displacements [N, 2]."""
        return (self._matrix @ displacements.astype(np.float32)).reshape(*self._shape, 2)

    def dense(self, displacements: Array) -> Array:
        """Return the field [height, width, 2] of the window for displacements [N, 2]."""
        return upsample(self.coarse(displacements), self.window, self.step)

    def at(self, points: Array, displacements: Array) -> Array:
        """Return the displacement [M, 2] at any points [M, 2]."""
        weights = self._weights(np.asarray(points, np.float64))
        return np.asarray(weights @ displacements.astype(np.float32), np.float32)


def upsample(coarse: Array, window: Window, step: int) -> Array:
    """Interpolate a coarse field [r, c, 2] to every pixel of `window` ([height, width, 2])."""
    x0, y0, x1, y1 = window
    rows, columns = coarse.shape[:2]
    scale = np.array([[1 / step, 0, 0], [0, 1 / step, 0]], np.float64)
    size = (x1 - x0, y1 - y0)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    mode = cv2.BORDER_REPLICATE
    del rows, columns
    return np.asarray(cv2.warpAffine(coarse, scale, size, flags=flags, borderMode=mode), np.float32)


def invert(field: Array, iterations: int = 3) -> Array:
    """Return the backward field b of a forward one d: source = p - b(p), b(p) = d(p - b(p)).

    Fixed-point iteration (Chen et al. 2008), on the grid of `field` [h, w, 2] whose displacements
    are in grid steps.
    """
    height, width = field.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    backward = field
    for _ in range(iterations):
        place = grid - backward
        backward = cv2.remap(field, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(backward, np.float32)


def smoothstep(x: Array) -> Array:
    """Return 3x^2 - 2x^3 of x clipped to [0, 1]."""
    x = np.clip(x, 0.0, 1.0)
    return np.asarray(x * x * (3 - 2 * x), np.float32)


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    square = ((a[:, None] - b[None]) ** 2).sum(-1) / 64.0**2
    return np.asarray(0.5 * square * np.log(square + 1e-12))


def _affine(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([np.ones((len(points), 1)), points / 64.0], 1)
