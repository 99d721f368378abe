"""Lip sync without SyncNet: the tracked mouth against the mouth that the sound asks for.

The mouth is read from face landmarks (opening and width in face units); what it should do is
predicted from the sound alone: phones by a free phone loop, then the viseme curves of
`ft2.puppet.curves`. Nothing is learned from video, and nothing needs a download. Shifts below
about 0.12 s hardly show, and one clip is a weak witness: read means over clips.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ft2 import faces, speech
from ft2.errors import UsageError
from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.puppet.curves import lip_tracks
from ft2.puppet.judges import face_units, inner_lip_aperture, mouth_agreement

OPENING, REST = 0.37, 0.03
"""Inner-lip height in face units of an opening of 1, and that of a shut mouth: what the landmarks
show of clean puppets (least squares, six faces)."""

SPREADING = 0.22
"""Change of the mouth's width in face units from a neutral one (0) to a spread one (1)."""


class LipSync:
    """Correlation, concordance and offset of tracked and predicted mouth; see the module."""

    def __init__(self, max_shift_seconds: float = 0.4) -> None:
        """Look for the offset up to `max_shift_seconds` either way."""
        self.max_shift_seconds = max_shift_seconds

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["lips"]

    def measure(self, clip: Clip) -> Measured:
        """Compare the mouth of one clip with its sound.

        Raises:
            UsageError: No sound, no speech, or the face is lost.
        """
        audio = clip.need_audio()
        if not speech.has_speech(audio):
            raise UsageError("the sound is silent: there are no lips to match")
        meant = predicted_mouth(audio, clip.fps, len(clip.frames))
        shown = tracked_mouth(clip.steady_landmarks())
        shown[:, 1] += meant[:, 1].mean()
        lags = min(round(self.max_shift_seconds * clip.fps), len(shown) - 3)
        if lags < 1:
            raise UsageError(f"{len(shown)} frames are too few to compare with the sound")
        found = mouth_agreement(shown, meant, lags)
        return Measured(
            {
                "lip_correlation": found["correlation"],
                "lip_concordance": found["concordance"],
                "lip_best": found["best"],
                "lip_offset": 1000.0 * found["offset"] / clip.fps,
            }
        )


def predicted_mouth(audio: speech.Audio, fps: float, num_frames: int) -> NDArray[np.float64]:
    """Return opening (0 to about 1) and width (-1 to 1) that the sound asks for, [F, 2].

    Raises:
        MissingExtra: pocketsphinx is not installed.
    """
    tracks = lip_tracks(speech.phones(audio), audio, np.arange(num_frames) / fps)
    return np.stack(tracks[:2], -1).astype(np.float64)


def tracked_mouth(points: faces.Landmarks) -> NDArray[np.float64]:
    """Return opening and width [F, 2] of landmarks [F, 478, 3], on the scale of the prediction.

    Faces differ in the width of a mouth at rest: width is given less its own mean.
    """
    width = np.linalg.norm(points[:, 291, :2] - points[:, 61, :2], axis=1) / face_units(points)
    opening = (inner_lip_aperture(points) - REST) / OPENING
    return np.stack([opening, (width - width.mean()) / SPREADING], -1).astype(np.float64)
