"""Manners: what a person always does when talking, readable from the face.

Real people move in ways of their own. In the puppet world a person's manner follows from the shape
of the face, so that whoever knows the face (a generator's identity branch) can know the manner,
and whoever does not cannot: no caption and no sound tells it.
"""

from __future__ import annotations

import numpy as np

from ft2.puppet.portrait import UNIT, Identity

HOLD = 0.10
"""Largest pitch in rad by which a person holds the head."""

MEAN_WIDTH, SPREAD = 2.08, 0.15
"""Width of an average face and what counts as a clear departure, in face units (eyes to mouth)."""

_SIDES = (234, 454)


def face_width(identity: Identity) -> float:
    """Return the width of the face between the ears in face units, about 1.7 to 2.5."""
    left, right = identity.landmarks[list(_SIDES), :2]
    return float(np.linalg.norm(right - left) / UNIT)


def held_pitch(identity: Identity) -> float:
    """Return the pitch in rad at which a person holds the head: broad faces low, narrow ones high.

    ``HOLD * tanh((width - MEAN_WIDTH) / SPREAD)``, so within ``(-HOLD, HOLD)``.
    """
    return float(HOLD * np.tanh((face_width(identity) - MEAN_WIDTH) / SPREAD))
