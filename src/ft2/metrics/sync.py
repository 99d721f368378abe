"""Sync-C, Sync-D and the offset, by SyncNet."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from torch import Tensor, nn

from ft2 import speech
from ft2.errors import UsageError
from ft2.faces import face_box
from ft2.media import Audio, Frames
from ft2.metrics.catalogue import FACTS
from ft2.metrics.face import tracks
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.metrics.network import Load, Network
from ft2.metrics.syncnet import SyncNet
from ft2.metrics.weights import fill, read_state

FPS, SIDE, WINDOW = 25, 224, 5
MARGIN, SMOOTH = 0.4, 13
"""Part of the face's half side that is added around it, and frames of the median over boxes."""


class Sync:
    """Confidence and distance of SyncNet on the longest track of a face."""

    def __init__(
        self,
        load: Load,
        device: str = "cpu",
        batch_size: int = 16,
        max_shift: int = 15,
        min_track: int = 25,
    ) -> None:
        """Shifts go up to `max_shift` frames of 40 ms; shorter tracks give no score."""
        self._network = Network(load, device, batch_size)
        self.max_shift, self.min_track = max_shift, min_track

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["sync"]

    def measure(self, clip: Clip) -> Measured:
        """Measure one clip.

        Raises:
            UsageError: No sound, no speech, or no face for long enough.
        """
        audio = clip.need_audio()
        if not speech.has_speech(audio):
            raise UsageError("the sound is silent: there are no lips to match")
        begin, end = self._longest(clip)
        times = np.arange(int((end - begin) * FPS / clip.fps)) / FPS
        frames = mouths(clip, begin + np.floor(times * clip.fps + 1e-6).astype(int))
        first = round(begin / clip.fps * speech.SAMPLE_RATE)
        length = round(len(frames) / FPS * speech.SAMPLE_RATE)
        seen, heard = self._embed(frames, audio[first : first + length])
        return Measured(scores(seen, heard, self.max_shift))

    def _longest(self, clip: Clip) -> tuple[int, int]:
        found = tracks(clip)
        begin, end = max(found, key=lambda t: t[1] - t[0], default=(0, 0))
        length = int((end - begin) * FPS / clip.fps)
        if length < self.min_track:
            raise UsageError(
                f"the longest of {len(found)} tracks of a face has {length} frames of 40 ms, "
                f"min_track is {self.min_track}"
            )
        return begin, end

    def _embed(self, frames: Frames, audio: Audio) -> tuple[Tensor, Tensor]:
        """Return embeddings [N, 1024] of windows of five frames and of their sound."""
        bgr = torch.from_numpy(np.ascontiguousarray(frames[..., ::-1])).permute(3, 0, 1, 2).float()
        cepstra = torch.from_numpy(mfcc(audio)).float()
        count = min(len(frames) - WINDOW, (cepstra.shape[1] - 4 * WINDOW) // 4 + 1)
        network = self._network.module
        assert isinstance(network, SyncNet)
        mouth = torch.stack([bgr[:, i : i + WINDOW] for i in range(count)])
        sound = torch.stack([cepstra[None, :, 4 * i : 4 * (i + WINDOW)] for i in range(count)])
        return self._network(mouth, call=network.mouth), self._network(sound, call=network.sound)


def mfcc(audio: Audio) -> NDArray[np.float64]:
    """Return 13 cepstral coefficients at 100 Hz, [13, T], as SyncNet was trained on them.

    Raises:
        MissingExtra: python_speech_features is not installed.
    """
    from python_speech_features import mfcc as cepstra

    scaled = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    return np.asarray(cepstra(scaled, speech.SAMPLE_RATE).T, np.float64)


def mouths(clip: Clip, chosen: NDArray[np.int64]) -> Frames:
    """Return square crops [N, 224, 224, 3] of the frames with these numbers.

    The square of half side s (the larger half side of the face's box) goes 1.4 s to both sides,
    s above and 1.8 s below its centre; centres and sizes are smoothed by a median over 13 frames.
    """
    boxes = np.array([face_box(p) for p in clip.landmarks[chosen]])
    half = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) / 2
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    half, x, y = (median_filter(track, SMOOTH, mode="nearest") for track in (half, x, y))
    return np.stack(
        [_cut(clip.frames[n], *place) for n, *place in zip(chosen, x, y, half, strict=True)]
    )


def _cut(frame: Frames, x: float, y: float, half: float) -> Frames:
    side = 2 * half * (1 + MARGIN)
    scale = side / SIDE
    place = np.array([[scale, 0, x - side / 2], [0, scale, y - half]], np.float64)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    grey = (110, 110, 110)
    return np.asarray(cv2.warpAffine(frame, place, (SIDE, SIDE), flags=how, borderValue=grey))


def scores(seen: Tensor, heard: Tensor, max_shift: int) -> dict[str, float]:
    """Return Sync-C, Sync-D and the offset in frames of embeddings [N, D] of mouths and sounds.

    The distance of every mouth to the sounds up to `max_shift` windows before and after it is
    averaged over mouths; beyond the ends a sound is zero. Sync-D is the least of these means,
    Sync-C the median less the least, the offset its place (positive: the mouth is late).
    """
    padded = nn.functional.pad(heard, (0, 0, max_shift, max_shift))
    shifts = [padded[k : k + len(seen)] for k in range(2 * max_shift + 1)]
    means = torch.stack([nn.functional.pairwise_distance(seen, s).mean() for s in shifts])
    least, place = means.min(0)
    return {
        "sync_c": float(means.median() - least),
        "sync_d": float(least),
        "sync_offset": float(max_shift - int(place)),
    }


def load_syncnet(path: Path) -> nn.Module:
    """Return SyncNet with the weights of ``syncnet_v2.model``.

    Raises:
        UsageError: The file is not what it should be.
    """
    return fill(SyncNet(), read_state(path), path)
