"""Colour of portraits: recolour, relight, give another background.

All work happens in CIE L*a*b* (OpenCV's 8-bit scaling), on soft masks of skin, hair and
background that follow from the landmarks and the person's matte.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.puppet import topology as topo
from ft2.puppet.fields import Array, smoothstep

Image = NDArray[np.uint8]


def skin_mask(image: Image, landmarks: Array, matte: Image, unit: float) -> Array:
    """Return how much each pixel is skin, float32 [H, W] in [0, 1].

    Inside the face oval all is skin; around it (ears, neck, a bald head) what is smooth and about
    as bright as the face.
    """
    light = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0].astype(np.float32)
    oval = np.zeros(light.shape, np.float32)
    cv2.fillPoly(oval, [np.round(landmarks[topo.OVAL, :2]).astype(np.int32)], 1.0)
    inner = cv2.erode(oval, np.ones((9, 9), np.uint8))
    typical = float(np.median(light[inner > 0]))
    fine = light - cv2.GaussianBlur(light, (0, 0), 2)
    rough = np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 3))
    spread = np.where(light > typical, 75.0, 40.0)
    alike = np.exp(-(((light - typical) / spread) ** 2)) * np.exp(-((rough / 10.0) ** 2))
    alike = smoothstep(np.asarray(alike * 1.6, np.float32))
    x, y = np.meshgrid(np.arange(light.shape[1]), np.arange(light.shape[0]))
    middle = landmarks[topo.OVAL, :2].mean(0)
    far = np.hypot((x - middle[0]) / (1.55 * unit), (y - middle[1] + 0.1 * unit) / (2.1 * unit))
    near = smoothstep((1.25 - far.astype(np.float32)) / 0.35)
    around = alike * near * (matte / 255.0)
    soft = cv2.GaussianBlur(
        np.maximum(cv2.erode(oval, np.ones((5, 5), np.uint8)), around), (0, 0), 2.5
    )
    return np.asarray(np.clip(soft, 0, 1), np.float32)


def recolour(
    image: Image, skin: Array, matte: Image, rng: np.random.Generator, strength: float = 1.0
) -> Image:
    """Shift hue and lightness of skin and of the rest of the person, each by its own draw."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    person = matte.astype(np.float32) / 255.0
    rest = person * (1 - skin)
    depth = rng.uniform(-0.28, 0.12) * strength
    lab[..., 0] *= 1 + depth * skin
    _tint(lab[..., 1:], skin, (rng.normal(0, 1.8) * strength, rng.normal(0, 2.8) * strength))
    lab[..., 0] *= 1 + rng.uniform(-0.35, 0.35) * strength * rest
    _tint(lab[..., 1:], rest, (rng.normal(0, 4) * strength, rng.normal(0, 6) * strength))
    return _to_rgb(lab)


def relight(image: Image, rng: np.random.Generator, strength: float = 1.0) -> Image:
    """Light the picture from a side: a smooth gain over the canvas, and gamma and warmth."""
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-1, 1, width)[None] * np.cos(angle)
    y = np.linspace(-1, 1, height)[:, None] * np.sin(angle)
    gain = 1 + 0.32 * strength * rng.uniform(0.2, 1.0) * np.tanh(1.5 * (x + y))
    gamma = np.exp(rng.normal(0, 0.16) * strength)
    warmth = 1 + np.array([1.0, 0.0, -1.0]) * rng.normal(0, 0.035) * strength
    lit = 255 * (image / 255.0) ** gamma * gain[..., None] * warmth
    return np.asarray(np.clip(lit, 0, 255), np.uint8)


def backdrop(background: Image, rng: np.random.Generator) -> Image:
    """Return another background: the old one tinted, or blurred shapes on a gradient."""
    height, width = background.shape[:2]
    if rng.random() < 0.3:
        lab = cv2.cvtColor(background, cv2.COLOR_RGB2LAB).astype(np.float32)
        lab[..., 0] = np.clip(lab[..., 0] * rng.uniform(0.7, 1.2), 0, 255)
        lab[..., 1:] += rng.normal(0, 9, 2).astype(np.float32)
        return _to_rgb(lab)
    ends = _muted(rng), _muted(rng)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    along = 0.5 + 0.5 * np.tanh(x * np.cos(angle) + y * np.sin(angle))
    picture = ends[0] + (ends[1] - ends[0]) * along[..., None]
    picture = np.ascontiguousarray(picture, np.float32)
    for _ in range(int(rng.integers(2, 9))):
        _shape(picture, rng)
    blur = rng.uniform(1.0, 6.0)
    return np.asarray(np.clip(cv2.GaussianBlur(picture, (0, 0), blur), 0, 255), np.uint8)


def _muted(rng: np.random.Generator) -> NDArray[np.float64]:
    grey = rng.uniform(50, 215)
    return np.asarray(np.clip(grey + rng.normal(0, 24, 3), 10, 245))


def _shape(picture: Array, rng: np.random.Generator) -> None:
    height, width = picture.shape[:2]
    colour = tuple(float(c) for c in _muted(rng))
    x, y = int(rng.integers(width)), int(rng.integers(height))
    kind = rng.integers(3)
    if kind == 0:
        cv2.circle(picture, (x, y), int(rng.integers(8, 50)), colour, -1)
    elif kind == 1:
        wide, high = int(rng.integers(8, 70)), int(rng.integers(8, 120))
        cv2.rectangle(picture, (x, y), (x + wide, y + high), colour, -1)
    else:
        cv2.line(picture, (x, 0), (x, height), colour, int(rng.integers(3, 14)))


def _tint(chroma: Array, weight: Array, shift: tuple[float, float]) -> None:
    chroma += weight[..., None] * np.array(shift, np.float32)


def _to_rgb(lab: Array) -> Image:
    clipped = np.clip(np.round(lab), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(clipped, cv2.COLOR_LAB2RGB), np.uint8)
