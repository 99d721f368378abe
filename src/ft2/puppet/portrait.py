"""From any portrait to a puppet's raw material: canvas, landmarks, matte, background.

The canvas is 256 px wide. Its inner 192 px are the aligned crop of `ft2.faces` (eyes at height
0.40, mouth at 0.70); the 32 px around leave room for head motion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2 import faces
from ft2.errors import MissingExtra
from ft2.puppet import topology as topo
from ft2.puppet.fields import Array, smoothstep
from ft2.puppet.mouth import Mouth, lip_displacement

CANVAS = 256
MARGIN = 32
UNIT = (faces.MOUTH_LINE - faces.EYE_LINE) * (CANVAS - 2 * MARGIN)
"""Distance from eyes to mouth on every canvas, in pixels."""

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Identity:
    """A face that can be animated.

    Attributes:
        identity_id: Name; variations carry the name they came from as a prefix.
        image: uint8 [256, 256, 3] canvas with the mouth closed (see the module docstring).
        landmarks: float32 [478, 3], canvas pixels.
        matte: uint8 [256, 256], 255 where the person is.
        background: uint8 [256, 256, 3], the canvas without the person.
    """

    identity_id: str
    image: Image
    landmarks: Array
    matte: Image
    background: Image

    @property
    def skin(self) -> Array:
        """Median RGB of the cheeks, float32 [3], 0 to 255."""
        spots = np.round(self.landmarks[[50, 280, 205, 425, 117, 346], :2]).astype(int)
        spots = np.clip(spots, 2, CANVAS - 3)
        patches = [self.image[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3) for x, y in spots]
        return np.asarray(np.median(np.concatenate(patches), 0), np.float32)

    def portrait(self, size: int = 64) -> Image:
        """Return the aligned crop uint8 [size, size, 3] of the portrait at rest."""
        inner = self.image[MARGIN:-MARGIN, MARGIN:-MARGIN]
        return np.asarray(cv2.resize(inner, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def prepare(image: Image, identity_id: str) -> Identity:
    """Make an `Identity` of a portrait uint8 [H, W, 3] of any size.

    An open mouth is closed, since the puppet opens it itself.

    Raises:
        NoFace: No face was found.
        MissingExtra: mediapipe is not installed.
    """
    points = faces.landmarks(image)
    x0, y0, x1, y1 = faces.aligned_box(points)
    extra = (x1 - x0) * MARGIN / (CANVAS - 2 * MARGIN)
    box = (x0 - extra, y0 - extra, x1 + extra, y1 + extra)
    canvas = faces.crop(image, box, CANVAS)
    points = faces.to_crop(points, box, CANVAS)
    matte = person_matte(canvas)
    identity = Identity(identity_id, canvas, points, matte, fill_background(canvas, matte))
    return close_mouth(identity)


def person_matte(image: Image) -> Image:
    """Return uint8 [H, W], 255 on the person (MediaPipe selfie segmentation, sharpened)."""
    try:
        import mediapipe
    except ImportError as error:
        raise MissingExtra("mediapipe", "face") from error
    kind = mediapipe.solutions.selfie_segmentation.SelfieSegmentation
    with faces.quiet(), kind(model_selection=0) as model:
        mask = model.process(np.ascontiguousarray(image)).segmentation_mask
    mask = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.2)
    return np.asarray(smoothstep((mask - 0.25) / 0.5) * 255, np.uint8)


def fill_background(image: Image, matte: Image) -> Image:
    """Return `image` with the person painted over by the surrounding background.

    Holes are filled from blurs of growing width of what is known (normalised convolution,
    Knutsson and Westin 1993).
    """
    known = (cv2.dilate(matte, np.ones((9, 9), np.uint8)) < 20).astype(np.float32)
    if known.mean() < 0.02:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), 24), np.uint8)
    filled = image * known[..., None]
    done = known.copy()
    for sigma in (3, 8, 20, 60):
        weight = cv2.GaussianBlur(known, (0, 0), sigma)
        value = cv2.GaussianBlur(image * known[..., None], (0, 0), sigma)
        value /= np.maximum(weight, 1e-6)[..., None]
        use = ((done < 0.5) & (weight > 0.05 if sigma < 60 else weight > -1))[..., None]
        filled = np.where(use, value, filled)
        done = np.maximum(done, use[..., 0])
    soft = cv2.GaussianBlur(filled.astype(np.float32), (0, 0), 3)
    edge = cv2.GaussianBlur(known, (0, 0), 2)[..., None]
    return np.asarray(np.clip(image * edge + soft * (1 - edge), 0, 255), np.uint8)


def close_mouth(identity: Identity) -> Identity:
    """Return the identity with parted lips brought together and a wide smile relaxed."""
    points = identity.landmarks
    gap = points[topo.LOWER_INNER, 1] - points[topo.UPPER_INNER, 1]
    if float(gap.max()) < 0.02 * UNIT:
        return identity
    shape = np.zeros((len(points), 2), np.float32)
    shape[topo.UPPER_INNER, 1] = 0.45 * gap
    shape[topo.UPPER_OUTER, 1] = 0.45 * gap
    shape[topo.LOWER_INNER, 1] = -0.55 * gap
    shape[topo.LOWER_OUTER, 1] = -0.50 * gap
    shape[topo.CHIN, 1] = -0.30 * gap.max()
    shape[topo.JAW, 1] = -0.12 * gap.max()
    relax = -0.5 * min(1.0, float(gap.max()) / (0.12 * UNIT))
    shape += relax * lip_displacement(points[:, :2], UNIT, "width")
    mouth = Mouth(points, UNIT, CANVAS, identity.skin)
    moved = points.copy()
    moved[:, :2] += shape
    return replace(identity, image=mouth.reshape(identity.image, shape), landmarks=moved)
