"""Rendering: curves in, frames out."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.puppet.curves import Curves
from ft2.puppet.eyes import Eyes
from ft2.puppet.mouth import LIP_CURVES, Mouth
from ft2.puppet.portrait import CANVAS, UNIT, Identity
from ft2.puppet.pose import POSE_CURVES, Stage

Frames = NDArray[np.uint8]


class Puppet:
    """One identity, ready to be drawn at one size.

    Args:
        identity: The face.
        size: Side of the frames in pixels.
        supersample: Frames are drawn this many times larger and averaged down.
    """

    def __init__(self, identity: Identity, size: int = 64, supersample: int = 2) -> None:
        if size < 16 or supersample < 1:
            raise UsageError(
                f"cannot draw at size {size} with supersampling {supersample}",
                "use a size of at least 16 and a supersampling of at least 1",
            )
        self.size = size
        self._person = np.dstack([identity.image, identity.matte])
        self._mouth = Mouth(identity.landmarks, UNIT, CANVAS, identity.skin)
        self._eyes = Eyes(identity.landmarks, UNIT, CANVAS)
        self._stage = Stage(identity, size * supersample)

    def frame(self, values: dict[str, float]) -> Frames:
        """Draw one frame uint8 [size, size, 3] from a value for each curve."""
        person = self._person.copy()
        lips = np.array([values[name] for name in LIP_CURVES], np.float32)
        if np.abs(lips).max() > 1e-4:
            self._mouth.apply(person, lips)
        self._eyes.apply(person, values["blink"], values["brow"])
        pose = np.array([values[name] for name in POSE_CURVES], np.float32)
        shown = self._stage.show(person, pose, values["background"])
        if shown.shape[0] == self.size:
            return shown
        small = cv2.resize(shown, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)

    def frames(self, curves: Curves) -> Frames:
        """Draw all frames uint8 [F, size, size, 3]."""
        names = Curves.names()
        table = curves.stack()
        return np.stack(
            [self.frame(dict(zip(names, map(float, row), strict=True))) for row in table]
        )


def render(identity: Identity, curves: Curves, size: int = 64, supersample: int = 2) -> Frames:
    """Draw a clip uint8 [F, size, size, 3] of `identity` driven by `curves`."""
    return Puppet(identity, size, supersample).frames(curves)
