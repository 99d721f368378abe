"""Quality defects: what cameras, codecs and networks do to pictures."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Spoil = Callable[[Frames], Frames]


def _blur(strength: float, rng: np.random.Generator) -> Spoil:
    del rng

    def spoil(frame: Frames) -> Frames:
        sigma = (0.011 + 0.013 * strength) * frame.shape[1]
        return np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8)

    return spoil


def _jpeg(strength: float, rng: np.random.Generator) -> Spoil:
    del rng
    quality = max(2, round(34 - 24 * strength))

    def spoil(frame: Frames) -> Frames:
        _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)

    return spoil


def _noise(strength: float, rng: np.random.Generator) -> Spoil:
    def spoil(frame: Frames) -> Frames:
        noise = rng.standard_normal(frame.shape) * (7 + 14 * strength)
        return np.asarray(np.clip(frame + noise, 0, 255), np.uint8)

    return spoil


def _colour(strength: float, rng: np.random.Generator) -> Spoil:
    gain = np.array([1.0, 1.0, 1.0])
    gain[rng.permutation(3)] = [1 + 0.35 * strength, 1 - 0.05 * strength, 1 - 0.35 * strength]
    levels = round(30 - 18 * strength)

    def spoil(frame: Frames) -> Frames:
        step = 255.0 / levels
        shifted = np.round(frame * gain / step) * step
        return np.asarray(np.clip(shifted, 0, 255), np.uint8)

    return spoil


def _lowres(strength: float, rng: np.random.Generator) -> Spoil:
    del rng

    def spoil(frame: Frames) -> Frames:
        height, width = frame.shape[:2]
        factor = 1.7 + 1.5 * strength
        low = (max(4, round(width / factor)), max(4, round(height / factor)))
        small = cv2.resize(frame, low, interpolation=cv2.INTER_AREA)
        big = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
        return np.asarray(big, np.uint8)

    return spoil


QUALITY: dict[str, Callable[[float, np.random.Generator], Spoil]] = {
    "blur": _blur, "blocks": _jpeg, "noise": _noise, "colour": _colour, "lowres": _lowres,
}  # fmt: skip
"""For each quality defect: from strength in (0, 1] and a source of randomness to a filter."""
