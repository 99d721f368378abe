"""Clips spoilt on purpose, whose place below the original is known: controlled negatives.

| kind | what is done | becomes No |
|---|---|---|
| ``audio_shift`` | the sound is moved by 2 to 15 frames of 25 a second, either way | lip |
| ``silence`` | the sound is taken away | lip |
| ``shuffle`` | frames change places within parts of a third of a second | motion, lip |
| ``freeze`` | a stretch of a third to all of the clip stands still | motion, lip |
| ``blur`` | every frame is blurred | quality |
| ``bitrate`` | the picture is encoded by h264 at a quality of 38 to 48 (51 is worst) | quality |

Other answers of the clip stay as they were. Another clip's voice is `CriticConfig.swap`.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ft2.critic.names import Negative
from ft2.media import read_video, write_video
from ft2.qwen.view import ClipView

Frames = npt.NDArray[np.uint8]

SPOILS: dict[Negative, tuple[str, ...]] = {
    "audio_shift": ("lip",),
    "silence": ("lip",),
    "shuffle": ("motion", "lip"),
    "freeze": ("motion", "lip"),
    "blur": ("quality",),
    "bitrate": ("quality",),
}
"""Dimensions that each kind turns to No."""


def spoil(view: ClipView, kind: Negative, rng: np.random.Generator, sample_rate: int) -> ClipView:
    """Return a view with one defect, the same in all its streams.

    Args:
        view: What the critic would see and hear.
        kind: One of `SPOILS`.
        rng: Decides strength and place.
        sample_rate: Samples a second of the view's sound.
    """
    if kind == "audio_shift":
        frames = int(rng.integers(2, 16)) * (1 if rng.random() < 0.5 else -1)
        return ClipView(view.streams, moved(view.audio, round(frames / 25 * sample_rate)))
    if kind == "silence":
        return ClipView(view.streams, np.zeros_like(view.audio))
    seed = int(rng.integers(2**31))
    seconds = len(view.audio) / sample_rate
    changed = [_picture(s, kind, np.random.default_rng(seed), seconds) for s in view.streams]
    return ClipView(tuple(changed), view.audio)


def moved(audio: npt.NDArray[np.float32], samples: int) -> npt.NDArray[np.float32]:
    """Return a sound that comes later by `samples` (sooner if negative), silent at the end left."""
    out = np.zeros_like(audio)
    if samples >= 0:
        out[samples:] = audio[: max(len(audio) - samples, 0)]
    else:
        out[:samples] = audio[-samples:]
    return out


def _picture(frames: Frames, kind: Negative, rng: np.random.Generator, seconds: float) -> Frames:
    if kind == "shuffle":
        return frames[_shuffled(len(frames), max(2, round(len(frames) / seconds / 3)), rng)]
    if kind == "freeze":
        share, place = rng.uniform(1 / 3, 1), rng.random()
        first = int(place * (1 - share) * len(frames))
        last = min(len(frames), first + max(2, round(share * len(frames))))
        order = np.arange(len(frames))
        order[first:last] = first
        return frames[order]
    if kind == "blur":
        sigma = rng.uniform(1.0, 2.5) * frames.shape[2] / 64
        return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])
    return _low_bitrate(frames, int(rng.integers(38, 49)))


def _shuffled(count: int, part: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return an order in which every part of `part` frames is permuted."""
    order = np.arange(count)
    for first in range(0, count, part):
        piece = order[first : first + part]
        order[first : first + part] = np.roll(piece[::-1], int(rng.integers(len(piece))))
    return order


def _low_bitrate(frames: Frames, crf: int) -> Frames:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "low.mp4"
        write_video(path, frames, 25.0, crf=crf)
        return read_video(path).frames


def spoiled_answers(
    labels: Sequence[bool | float | None], dimensions: Sequence[str], kind: Negative
) -> tuple[bool | float | None, ...]:
    """Return a clip's answers after it was spoilt."""
    pairs = zip(labels, dimensions, strict=True)
    return tuple(False if d in SPOILS[kind] else label for label, d in pairs)
