"""Videos of talking people -> training clips, each kept or refused for a reason.

A video is cut at scene changes and into clips of the model's length. A clip is kept if it shows one
face, found with confidence, large enough and never lost; if it has speech; and if speech and mouth
go together. The measure of that is our own: the correlation of the mouth's opening (inner lips over
the face's height) with the loudness of the sound, at the delay where it is highest. SyncNet's is
taken too where its weights are given.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2 import faces, media, speech
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.generator.config import VideosConfig
from ft2.generator.strength import (
    CHIN,
    FOREHEAD,
    LOWER_LIP,
    UPPER_LIP,
    Joints,
    body_motion,
    face_motion,
)
from ft2.metrics.measure import Clip as Measurable
from ft2.metrics.measure import Metric

CUT_FACTOR = 6.0
"""A cut differs from the median change of the video by at least this factor."""


@dataclass(frozen=True)
class Clip:
    """One clip that was kept.

    Attributes:
        frames: uint8 [F, H, W, 3], the aligned crop of its first frame.
        audio: float32 [S].
        start: seconds from the beginning of the video.
        confidence: of the face, the least of three frames.
        correlation: of mouth and loudness at the best delay.
        offset_seconds: that delay; positive if the sound is late.
        motion: strengths of face and body (``ft2.generator.strength``), nan where unknown; what
            omega_l and omega_b are made of.
        lips: True inside the lips, [F, H, W]; a frame without a face repeats the one before.
        sync: SyncNet's ``sync_c``, ``sync_d`` and ``sync_offset`` (frames of 40 ms), if asked for.
    """

    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    start: float
    confidence: float
    correlation: float
    offset_seconds: float
    motion: tuple[float, float]
    lips: NDArray[np.bool_]
    sync: Mapping[str, float] = field(default_factory=dict)


def scenes(frames: NDArray[np.uint8], threshold: float) -> list[tuple[int, int]]:
    """Return (first, end) frames of scenes without a cut.

    A cut is where two neighbours, 32 x 32 and grey, differ by more than ``threshold`` levels and
    six times the median.
    """
    small = np.stack([
        cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
        for f in frames
    ]).astype(np.float32)  # fmt: skip
    change = np.abs(np.diff(small, axis=0)).mean((1, 2))
    limit = max(threshold, CUT_FACTOR * float(np.median(change)) if len(change) else 0.0)
    cuts = [0, *(np.flatnonzero(change > limit) + 1).tolist(), len(frames)]
    return list(itertools.pairwise(cuts))


def opening(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mouth's opening over the face's height, [F], of landmarks [F, 478, 3]."""
    gap = np.linalg.norm(points[:, UPPER_LIP, :2] - points[:, LOWER_LIP, :2], axis=1)
    height = np.linalg.norm(points[:, FOREHEAD, :2] - points[:, CHIN, :2], axis=1)
    return np.asarray(gap / np.maximum(height, 1e-6), np.float64)


def loudness(audio: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Return the RMS of the sound at each of ``count`` frames, [count]."""
    edges = np.linspace(0, len(audio), count + 1).round().astype(int)
    power = [np.square(audio[a:b], dtype=np.float64).mean() for a, b in itertools.pairwise(edges)]
    return np.sqrt(np.asarray(power))


def step_together(
    mouth: NDArray[np.float64], sound: NDArray[np.float64], most: int
) -> tuple[float, int]:
    """Return the highest correlation of two series [N] and its delay of the second, in steps.

    Delays of up to ``most`` steps either way are tried.
    """
    best = (-1.0, 0)
    for delay in sorted(range(-most, most + 1), key=abs):
        a = mouth[max(0, -delay) : len(mouth) - max(0, delay)]
        b = sound[max(0, delay) : len(sound) - max(0, -delay)]
        if a.std() > 1e-9 and b.std() > 1e-9:
            found = float(np.corrcoef(a, b)[0, 1])
            best = max(best, (found, delay), key=lambda pair: pair[0])
    return best


def clip_times(first: int, end: int, fps: float, clip: ClipFormat) -> list[float]:
    """Return where clips begin, in seconds, in a scene of frames [first, end)."""
    count = int((end - first) / fps / clip.seconds + 1e-6)
    return [first / fps + number * clip.seconds for number in range(count)]


def take_clip(
    video: media.Video,
    start: float,
    clip: ClipFormat,
    config: VideosConfig,
    joints: Joints | None = None,
    sync: Metric | None = None,
) -> Clip | str:
    """Return the clip that begins at ``start`` seconds, or why it is refused."""
    assert video.audio is not None
    places = np.round((start + np.arange(clip.num_frames) / clip.fps) * video.fps).astype(int)
    frames = video.frames[np.minimum(places, len(video.frames) - 1)]
    first = round(start * clip.sample_rate)
    audio = media.fit_audio(video.audio[first : first + clip.num_samples], clip.num_samples)
    if not speech.has_speech(audio):
        return "no speech"
    seen = [faces.face_confidences(frames[i]) for i in (0, len(frames) // 2, -1)]
    if not all(seen):
        return "no face"
    if any(len(found) > 1 and found[1] >= config.other_confidence for found in seen):
        return "several faces"
    confidence = min(found[0] for found in seen)
    if confidence < config.min_confidence:
        return f"face confidence {confidence:.2f} below {config.min_confidence:g}"
    points = faces.track(frames)
    known = np.asarray(~np.isnan(points).any((1, 2)), np.bool_)
    if known.mean() < 1 - config.max_lost or not known[0]:
        return f"face lost in {1 - known.mean():.0%} of the frames"
    found = _aligned(frames, audio, points[known], known, start, confidence, clip, config)
    if sync is not None and not isinstance(found, str):
        found = _synced(found, frames, clip, config, sync)
    if isinstance(found, str) or joints is None:
        return found
    return replace(found, motion=(found.motion[0], body_motion(joints(frames))))


def _synced(
    found: Clip, frames: NDArray[np.uint8], clip: ClipFormat, config: VideosConfig, sync: Metric
) -> Clip | str:
    """Return a clip with SyncNet's measure of its ``frames`` as they were filmed, or a reason."""
    try:
        measured = sync.measure(Measurable(Path(), frames, clip.fps, found.audio)).values
    except UsageError as error:
        return f"SyncNet: {error.message}"
    return sync_reason(measured, config) or replace(found, sync=measured)


def sync_reason(measured: Mapping[str, float], config: VideosConfig) -> str | None:
    """Return why SyncNet's measure refuses a clip, or None."""
    if measured["sync_c"] < config.min_sync_c:
        return f"Sync-C {measured['sync_c']:.2f} below {config.min_sync_c:g}"
    if abs(measured["sync_offset"]) > config.max_sync_frames:
        return f"SyncNet finds the sound {measured['sync_offset']:+.0f} frames from the mouth"
    return None


def _aligned(
    frames: NDArray[np.uint8],
    audio: NDArray[np.float32],
    points: NDArray[np.float32],
    known: NDArray[np.bool_],
    start: float,
    confidence: float,
    clip: ClipFormat,
    config: VideosConfig,
) -> Clip | str:
    """Crop a clip whose face is tracked (``points`` of the ``known`` frames), or say why not."""
    from ft2.generator.inputs import portrait_box

    box = portrait_box(points[0], clip, config.margin)
    if box[2] - box[0] < config.min_scale * clip.width:
        return f"face crop of {box[2] - box[0]:.0f} pixels, {clip.width} wanted"
    middles = points[..., :2].mean(1)
    inside = (middles > box[:2]) & (middles < box[2:])
    if not inside.all():
        return "the face leaves its crop"
    most = round(config.search_seconds * clip.fps)
    correlation, delay = step_together(opening(points), loudness(audio, len(frames))[known], most)
    offset = delay / clip.fps
    if correlation < config.min_correlation:
        return f"mouth and speech correlate by {correlation:.2f}"
    if abs(offset) > config.max_offset_seconds:
        return f"the sound is {offset:+.2f} s late"
    shown = np.stack([faces.crop(f, box, clip.width, clip.height) for f in frames])
    last = np.maximum(np.cumsum(known) - 1, 0)
    marks = faces.to_crop(points, box, clip.width)[last]
    lips = np.stack([faces.lip_mask(mark, clip.height, clip.width) for mark in marks])
    motion = (face_motion(points), float("nan"))
    return Clip(shown, audio, start, confidence, correlation, offset, motion, lips)


def clips_of(
    path: Path,
    clip: ClipFormat,
    config: VideosConfig,
    joints: Joints | None = None,
    sync: Metric | None = None,
) -> tuple[list[Clip], list[dict[str, object]]]:
    """Return the clips of one video that are kept, and a row with the reason for each other.

    Raises:
        UsageError: the video cannot be read or has no sound.
    """
    video = media.read_video(path, clip.sample_rate, need_audio=True)
    kept: list[Clip] = []
    refused: list[dict[str, object]] = []
    for first, end in scenes(video.frames, config.cut_threshold):
        times = clip_times(first, end, video.fps, clip)
        if not times:
            seconds = (end - first) / video.fps
            refused.append({"start": round(first / video.fps, 3), "seconds": round(seconds, 3),
                            "reason": f"shorter than a clip of {clip.seconds:g} s"})  # fmt: skip
        for start in times:
            found = take_clip(video, start, clip, config, joints, sync)
            if isinstance(found, str):
                refused.append({"start": round(start, 3), "reason": found})
            else:
                kept.append(found)
    return kept, refused
