"""Driving curves: what the mouth, eyes, head and background do, frame by frame.

Lips follow phones through a viseme table with co-articulation (targets blend into each other,
closures of B, P and M are kept). Head, brows and blinks follow smooth band-limited noise, with
nods and raised brows on stressed syllables. At frame 0 every curve is 0: the portrait at rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from ft2.puppet.fields import Array, smoothstep
from ft2.puppet.visemes import CLOSED, TUCKED, VISEMES
from ft2.speech import SAMPLE_RATE, Phone

RATE = 100
"""Curves are made at this rate in Hz and then read at frame times."""

SETTLING = 0.4
"""Seconds in which a head takes up the pitch at which it is held."""

LIPS = ("open", "width", "press", "tuck")
MOTION = ("blink", "brow", "yaw", "pitch", "roll", "tx", "ty", "breathe", "background")


@dataclass(frozen=True)
class Curves:
    """One value a frame, each float32 [F].

    Attributes:
        open: Jaw and lips apart, 0 shut to 1 wide.
        width: Lips rounded (-1) to spread (1).
        press: Lips pressed together, 0 to 1.
        tuck: Lower lip under the upper teeth, 0 to 1.
        blink: 0 open to 1 shut.
        brow: Brows lifted, about -0.3 to 1.
        yaw: Head turned, rad (positive: towards picture right).
        pitch: Head nodded, rad (positive: down).
        roll: Head tilted, rad (positive: clockwise on the picture).
        tx: Head moved right, face units (eyes to mouth).
        ty: Head moved down, face units.
        breathe: Shoulders lifted, face units.
        background: Background moved right, face units.
    """

    open: Array
    width: Array
    press: Array
    tuck: Array
    blink: Array
    brow: Array
    yaw: Array
    pitch: Array
    roll: Array
    tx: Array
    ty: Array
    breathe: Array
    background: Array

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the curve names in the order of `stack`."""
        return tuple(field.name for field in fields(Curves))

    def stack(self) -> Array:
        """Return all curves as float32 [F, 13]."""
        return np.stack(astuple(self), -1).astype(np.float32)

    @staticmethod
    def unstack(table: Array) -> Curves:
        """Return the curves of a table [F, 13]."""
        return Curves(*np.ascontiguousarray(np.asarray(table, np.float32).T))


@dataclass(frozen=True)
class Style:
    """What a speaker does besides talking; energy and hold are not named in the caption.

    Attributes:
        nods: Nods on stressed syllables.
        brows: Raises the brows on them.
        breathing: The shoulders breathe.
        background: The background moves.
        lively: Sways more.
        energy: Factor on all that the head does.
        hold: Pitch in rad that the head takes up at the start and keeps (`ft2.puppet.manner`).
    """

    nods: bool = True
    brows: bool = True
    breathing: bool = True
    background: bool = False
    lively: bool = False
    energy: float = 1.0
    hold: float = 0.0

    def caption(self) -> str:
        """Return the sentence that describes the style."""
        parts = ["nodding" if self.nods else "holding the head level"]
        parts.append("raising the brows" if self.brows else "with calm brows")
        if self.breathing:
            parts.append("the shoulders breathe")
        parts.append(
            "the background moves slowly" if self.background else "the background is still"
        )
        how = "talks lively" if self.lively else "talks"
        return f"a person {how}, " + ", ".join(parts)

    @staticmethod
    def draw(rng: np.random.Generator) -> Style:
        """Draw a random style."""
        nods, brows, breathing, background, lively = rng.random(5) < (0.6, 0.5, 0.6, 0.4, 0.4)
        return Style(bool(nods), bool(brows), bool(breathing), bool(background), bool(lively))


def from_speech(
    phones: Sequence[Phone], audio: Array, fps: float, num_frames: int, seed: int,
    style: Style | None = None, start: float = 0.0,
) -> Curves:  # fmt: skip
    """Make the curves of a clip.

    Args:
        phones: Phones of the utterance.
        audio: float32 [N], 16 kHz, the utterance.
        fps: Frames a second; frame i shows time start + i / fps.
        num_frames: F.
        seed: Seeds all motion; lips have no randomness.
        style: What moves besides the lips; `Style()` if None.
        start: Where in the utterance the clip starts, in s.
    """
    style = style or Style()
    times = np.arange(num_frames) / fps
    rest = rise(times)
    lips = [track * rest for track in lip_tracks(phones, audio, start + times)]
    accents = stresses(audio) - start
    motion = _motion(times, accents, seed, style)
    return Curves(*[np.asarray(c, np.float32) for c in (*lips, *motion)])


def rise(times: NDArray[np.float64], seconds: float = 0.16) -> Array:
    """Return how far a clip has left its portrait: 0 at time 0 to 1 after `seconds`."""
    return smoothstep(np.asarray(times, np.float32) / seconds)


def lip_tracks(
    phones: Sequence[Phone], audio: Array, times: NDArray[np.float64]
) -> tuple[Array, Array, Array, Array]:
    """Return open, width, press and tuck at `times` (s in the utterance; outside it: shut)."""
    table = _targets(phones, len(audio) / SAMPLE_RATE)
    grid = (np.arange(len(table)) + 0.5) / RATE - _PAD
    loud = np.interp(grid, *_loudness(audio))
    smooth = gaussian_filter1d(table, 3.5, axis=0)
    press, tuck = gaussian_filter1d(table[:, 2:], 2.2, axis=0).T
    press, tuck = np.clip(press * 1.25, 0, 1), np.clip(tuck * 1.25, 0, 1)
    opened = np.clip(smooth[:, 0] * (0.75 + 0.45 * loud) * 1.1, 0, 1.1)
    opened = opened * (1 - press) * (1 - 0.8 * tuck)
    tracks = (opened, np.clip(1.15 * smooth[:, 1], -1, 1), press, tuck)
    box = [gaussian_filter1d(track, 1.5) for track in tracks]
    found = [np.interp(times, grid, track, left=0.0, right=0.0) for track in box]
    return tuple(np.asarray(track, np.float32) for track in found)  # type: ignore[return-value]


def stresses(audio: Array) -> NDArray[np.float64]:
    """Return the times (s) of the loudest syllables of `audio` [N] at 16 kHz."""
    times, loud = _loudness(audio)
    smooth = gaussian_filter1d(loud, 8.0)
    peaks, _ = find_peaks(smooth, height=0.45, distance=45)
    return np.asarray(times[peaks])


_PAD = 0.5


def _targets(phones: Sequence[Phone], seconds: float) -> NDArray[np.float64]:
    """Return viseme targets [T, 4] at `RATE`, from `_PAD` before to `_PAD` after the audio."""
    table = np.zeros((round((seconds + 2 * _PAD) * RATE), 4))

    def at(time: float) -> int:
        return round((time + _PAD) * RATE)

    for phone in phones:
        table[at(phone.start) : at(phone.end), :2] = VISEMES.get(phone.name, (0.25, 0.0))
    for phone in phones:
        column = 2 if phone.name in CLOSED else 3 if phone.name in TUCKED else None
        if column is not None:
            slack = max(0.02, 0.05 - (phone.end - phone.start) / 2)
            table[at(phone.start - slack) : at(phone.end + slack), column] = 1.0
    return table


def _loudness(audio: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return times (s) and loudness 0 to 1 at `RATE`, relative to the loud parts of the audio."""
    hop = SAMPLE_RATE // RATE
    count = max(len(audio) // hop, 1)
    blocks = np.zeros(count * hop)
    blocks[: min(len(audio), count * hop)] = audio[: count * hop]
    power = np.sqrt((blocks.reshape(count, hop) ** 2).mean(1))
    power = gaussian_filter1d(power, 2.0)
    top = max(float(np.quantile(power, 0.95)), 1e-4)
    return (np.arange(count) + 0.5) / RATE, np.clip(power / top, 0.0, 1.0) ** 0.6


def _motion(
    times: NDArray[np.float64], accents: NDArray[np.float64], seed: int, style: Style
) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng([seed, 7])
    yaw, pitch, roll, tx, ty = _sway(times, rng, style.lively)
    accents = accents[(accents > 0.15) & (accents < times[-1])]
    if style.nods:
        if not len(accents):
            accents = rng.uniform(0.3, 1.2, 1)
        for moment in accents:
            pitch = pitch + rng.uniform(0.10, 0.17) * _bump(times, moment, 0.17)
    yaw, pitch, roll, tx, ty = (style.energy * track for track in (yaw, pitch, roll, tx, ty))
    pitch = pitch + style.hold * rise(times, SETTLING)
    brow = 0.15 * _noise(times, rng, 0.3, 0.8)
    if style.brows:
        moments = accents[: 1 + rng.integers(2)] if len(accents) else rng.uniform(0.3, 1.2, 1)
        for moment in moments:
            brow = brow + rng.uniform(0.7, 1.1) * _bump(times, moment, 0.2)
    breathe = _noise(times, rng, 0.3, 0.5) * (0.05 if style.breathing else 0.0)
    drift = rng.choice([-1, 1]) * rng.uniform(0.12, 0.24) * (1.0 if style.background else 0.0)
    tracks = [brow, yaw, pitch, roll, tx, ty, breathe, drift * times]
    gate = rise(times, 0.1)
    return [_blinks(times, rng), *[(track - track[0]) * gate for track in tracks]]


def _sway(
    times: NDArray[np.float64], rng: np.random.Generator, lively: bool
) -> list[NDArray[np.float64]]:
    """Return yaw, pitch, roll, tx, ty whose summed path spans a drawn part of a face unit."""
    gains = np.array([0.08, 0.05, 0.035, 0.05, 0.03]) * rng.uniform(0.5, 1.5, 5)
    tracks = [gain * _noise(times, rng, 0.25, 0.75) for gain in gains]
    yaw, pitch, roll, tx, ty = tracks
    across = tx + 1.1 * yaw + 1.3 * roll
    along = ty + 1.1 * pitch
    span = float(np.hypot(np.ptp(across), np.ptp(along)))
    wanted = rng.uniform(0.17, 0.24) if lively else rng.uniform(0.12, 0.17)
    return [track * wanted / max(span, 1e-6) for track in tracks]


def _noise(
    times: NDArray[np.float64], rng: np.random.Generator, low: float, high: float
) -> NDArray[np.float64]:
    """Return band-limited noise of unit size: three sinusoids between `low` and `high` Hz."""
    total = np.zeros_like(times)
    for _ in range(3):
        rate, phase = rng.uniform(low, high), rng.uniform(0, 2 * np.pi)
        total += np.sin(2 * np.pi * rate * times + phase) * rng.uniform(0.5, 1.0)
    return total / 1.6


def _bump(times: NDArray[np.float64], moment: float, width: float) -> NDArray[np.float64]:
    return np.exp(-0.5 * ((times - moment) / width) ** 2)


def _blinks(times: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    blink = np.zeros_like(times)
    moment = rng.uniform(0.25, 2.6)
    while moment < times[-1] + 0.1:
        down = np.clip((times - moment) / 0.08 + 1, 0, 1)
        up = np.clip(1 - (times - moment - 0.05) / 0.15, 0, 1)
        blink = np.maximum(blink, np.minimum(down, up))
        moment += rng.uniform(1.2, 4.0)
    return blink * rise(times, 0.1)
