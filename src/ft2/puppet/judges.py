"""Ground-truth measures of a clip of a known face, one for each dimension.

They use what only the puppet world knows (the clean driving curves and clean renderings), never
a critic, a caption or a label, so they can check what a critic and a preference-tuned generator
claim. All three are higher for better and have no fixed unit; differences are read against the
spread of clean clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ft2 import faces
from ft2.puppet.curves import Curves
from ft2.puppet.probe import Array, Frames, PuppetProbe

MAX_LAG = 5
"""Offsets of the mouth are looked for up to this many frames either way."""

NATURAL_ACCELERATION = 4.0
"""RMS acceleration (face units/s^2) below which head motion is smooth; see `motion_parts`."""

NATURAL_PEAK = 10.0
"""Largest acceleration (face units/s^2) of smooth head motion."""

NATURAL_SPREAD = 0.045
"""Pose spread (face units) above which a head is alive."""

STILL_SPEED = 0.06
"""A head slower than this (face units/s) stands still."""

DETAIL_SLACK = 0.2
"""Log ratio of fine detail that clean frames differ by anyway."""

_WIDTH_WEIGHT = 0.5
_LIP_FLOOR = 0.06**2


@dataclass(frozen=True)
class Judgement:
    """Scores of one clip, higher is better.

    Attributes:
        lip: Concordance of tracked and driving mouth at lag 0 (1 equal, 0 unrelated).
        motion: Minus the departure from natural head motion (0 natural).
        quality: Minus the log distance to clean frames of the face (about 0 clean).
        parts: What the scores were made of.
    """

    lip: float
    motion: float
    quality: float
    parts: dict[str, float]


def judge(frames: Frames, probe: PuppetProbe, driving: Curves, fps: float) -> Judgement:
    """Judge uint8 [F, H, W, 3] of the face of `probe` against its clean driving curves [F]."""
    tracks, distance, detail = probe.distances(frames)
    lip = lip_parts(tracks.lips, driving)
    motion = motion_parts(tracks.pose, fps)
    quality = quality_parts(distance[1:], detail[1:])
    parts = {f"lip_{k}": v for k, v in lip.items()}
    parts |= {f"motion_{k}": v for k, v in motion.items()}
    parts |= {f"quality_{k}": v for k, v in quality.items()}
    return Judgement(lip["concordance"], motion["score"], quality["score"], parts)


def lip_parts(lips: Array, driving: Curves) -> dict[str, float]:
    """Compare tracked lips [F, 2] (open, width) with the driving ones: `mouth_agreement`."""
    return mouth_agreement(lips, np.stack([driving.open, driving.width], -1))


def mouth_agreement(
    shown: NDArray[np.floating[Any]], meant: NDArray[np.floating[Any]], max_lag: int = MAX_LAG
) -> dict[str, float]:
    """Compare a shown mouth [F, 2] (open, width) with the one that was meant [F, 2].

    `concordance` is Lin's coefficient (Biometrics 45, 1989) over both curves, width at half
    weight: 1 - E(x-y)^2 / (var x + var y + (mean x - mean y)^2), where the spread carries a small
    floor so that a shut mouth in silence scores near 1 and not at random. Unlike correlation it
    falls for a muted or exaggerated mouth. `offset` is the lag in frames, up to `max_lag` either
    way (positive: the mouth is late), of the best correlation, `best` that correlation, `gain`
    the amplitude ratio.
    """
    weight = np.sqrt([1.0, _WIDTH_WEIGHT])
    x, y = np.asarray(shown, np.float64) * weight, np.asarray(meant, np.float64) * weight
    error = ((x - y) ** 2).mean(0).sum()
    spread = x.var(0).sum() + y.var(0).sum() + ((x.mean(0) - y.mean(0)) ** 2).sum()
    lags = range(-max_lag, max_lag + 1)
    found = [_correlation(*_lagged(x, y, lag)) for lag in lags]
    best = int(np.argmax(found))
    gain = np.sqrt((x.var(0).sum() + 1e-6) / (y.var(0).sum() + 1e-6))
    return {
        "concordance": float(1 - error / (spread + _LIP_FLOOR)),
        "correlation": found[max_lag],
        "offset": float(lags[best]),
        "best": found[best],
        "gain": float(gain),
    }


def motion_parts(pose: Array, fps: float) -> dict[str, float]:
    """Measure how natural a head moves; pose float32 [F, >= 3] as the probe tracks it.

    `score` = -(log excess of RMS acceleration + half the log excess of its peak + log shortfall
    of the pose spread + share of frames at a standstill). Each term is 0 for natural motion;
    the natural limits are those of clean puppets (a test holds them to `curves.from_speech`).
    `repeats` is the share of frames that come back to a place left a moment ago.
    """
    place = pose[:, :3].astype(np.float64)
    speed = np.linalg.norm(np.diff(place, axis=0), axis=1) * fps
    force = np.linalg.norm(np.diff(place, 2, axis=0), axis=1) * fps**2
    acceleration, peak = float(np.sqrt((force**2).mean())), float(force.max())
    spread = float(np.sqrt(place.var(0).sum()))
    still = float((speed < STILL_SPEED).mean())
    rough = max(0.0, float(np.log(acceleration / NATURAL_ACCELERATION + 1e-6)))
    burst = max(0.0, float(np.log(peak / NATURAL_PEAK + 1e-6)))
    dull = max(0.0, float(np.log(NATURAL_SPREAD / (spread + 1e-3))))
    return {
        "score": -(rough + 0.5 * burst + dull + still),
        "acceleration": acceleration,
        "peak": peak,
        "spread": spread,
        "still": still,
        "repeats": _repeats(place),
    }


def quality_parts(distance: Array, detail: Array) -> dict[str, float]:
    """Turn log distances [F, 3] and detail [F] of `PuppetProbe.distances` into a score.

    `score` = -(mean over frames of the log RMS of the distance ratios of the bands, each at least
    1, plus the log ratio, either way and beyond `DETAIL_SLACK`, of fine detail to that of clean
    frames). The subspace alone would miss blur: blurred faces of a moving head lie close to it.
    """
    ratio = np.exp(np.maximum(distance.astype(np.float64), 0.0))
    excess = np.maximum(np.abs(detail.astype(np.float64)) - DETAIL_SLACK, 0.0)
    score = -(np.log(np.sqrt((ratio**2).mean(1))) + excess).mean()
    names = ("coarse", "middle", "fine")
    bands = dict(zip(names, map(float, distance.mean(0)), strict=True))
    return {"score": float(score), "detail": float(detail.mean()), **bands}


def landmark_lip(frames: Frames, driving: Curves) -> float:
    """Correlate the inner-lip aperture found by face landmarks with the driving opening.

    Independent of the probe: MediaPipe's face mesh on frames enlarged to 256 pixels. nan when the
    face is lost in more than a third of the frames or the driving mouth hardly moves.

    Args:
        frames: uint8 [F, H, W, 3].
        driving: The clean driving curves [F].
    """
    return aperture_agreement(faces.track(frames), driving)


def aperture_agreement(points: NDArray[np.float32], driving: Curves) -> float:
    """Return `landmark_lip` of a clip's landmarks [F, 478, 3]; frames without a face are nan."""
    found = np.isfinite(points[:, 0, 0])
    if found.mean() < 2 / 3 or float(np.std(driving.open)) < 0.05:
        return float("nan")
    aperture = inner_lip_aperture(points[found])
    return _correlation(aperture[:, None], driving.open[found, None].astype(np.float64))


def inner_lip_aperture(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean height of the inner lips [F] in face units, of landmarks [F, 478, 3]."""
    upper, lower = [82, 13, 312], [87, 14, 317]
    height = np.linalg.norm(points[:, lower, :2] - points[:, upper, :2], axis=2).mean(axis=1)
    return np.asarray(height / face_units(points), np.float64)


def face_units(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the way from the eyes to the mouth in pixels [F], of landmarks [F, 478, 3]."""
    eyes = points[:, [33, 133, 362, 263], :2].mean(axis=1)
    unit = np.linalg.norm(points[:, [61, 291], :2].mean(axis=1) - eyes, axis=1)
    return np.asarray(np.maximum(unit, 1e-6), np.float64)


def _lagged(
    shown: NDArray[np.float64], meant: NDArray[np.float64], lag: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if lag > 0:
        return shown[lag:], meant[:-lag]
    return (shown[:lag], meant[-lag:]) if lag else (shown, meant)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pooled Pearson correlation of the columns of two tables [F, C]; 0 without variation."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / size) if size > 1e-9 else 0.0


def _repeats(place: NDArray[np.float64], near: float = 0.008, far: float = 0.04) -> float:
    """Share of frames within `near` of one 2 to 10 back, with a way of `far` in between."""
    count, hits = len(place), 0
    for now in range(2, count):
        gaps = np.linalg.norm(place[max(0, now - 10) : now] - place[now], axis=1)
        close = np.flatnonzero(gaps[:-1] < near)
        hits += bool(len(close) and gaps[close[0] :].max() > far)
    return hits / max(count - 2, 1)
