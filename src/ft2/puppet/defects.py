"""Known defects of talking clips, each of one dimension and with a strength.

Lip defects act on the four lip curves, motion defects on the other nine, quality defects on the
pixels. Frame 0 is never touched: it shows the portrait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.puppet.curves import LIPS, MOTION, Curves
from ft2.puppet.degrade import QUALITY
from ft2.puppet.fields import Array

Frames = NDArray[np.uint8]
LipTrack = Callable[[float], Array]
"""Lip curves [F, 4] of the clip if the mouth ran `shift` seconds ahead of the sound."""


@dataclass(frozen=True)
class Defect:
    """A defect with its strength in (0, 1] and the seed of its random details."""

    name: str
    strength: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Check name and strength.

        Raises:
            UsageError: Unknown name, or a strength outside (0, 1].
        """
        if self.name not in DEFECTS:
            raise UsageError(f"unknown defect '{self.name}'", f"choose one of {', '.join(DEFECTS)}")
        if not 0.0 < self.strength <= 1.0:
            raise UsageError(f"defect strength is {self.strength}", "give a strength in (0, 1]")

    @property
    def dimension(self) -> str:
        """The dimension it spoils: motion, lip or quality."""
        return DEFECTS[self.name]


DEFECTS: dict[str, str] = {
    "frozen": "motion", "jitter": "motion", "jump": "motion", "robot": "motion",
    "stutter": "motion",
    "offset": "lip", "shift": "lip", "shuffle": "lip", "mute": "lip", "flap": "lip",
    "blur": "quality", "blocks": "quality", "noise": "quality", "colour": "quality",
    "lowres": "quality",
}  # fmt: skip
"""Name of each defect and the dimension it spoils."""

_POSE = ("yaw", "pitch", "roll", "tx", "ty")


def sample(
    rng: np.random.Generator, probability: float = 0.5, dimensions: Sequence[str] = ()
) -> list[Defect]:
    """Draw at most one defect per dimension, each dimension with `probability`.

    Args:
        rng: Source of randomness.
        probability: Chance of a defect, independent per dimension.
        dimensions: Dimensions to draw for; all three if empty.
    """
    found = []
    for dimension in dimensions or ("motion", "lip", "quality"):
        names = [name for name, owner in DEFECTS.items() if owner == dimension]
        spoiled, name = rng.random() < probability, names[rng.integers(len(names))]
        strength, seed = float(rng.uniform(0.4, 1.0)), int(rng.integers(2**31))
        if spoiled:
            found.append(Defect(name, strength, seed))
    return found


def apply_to_curves(
    curves: Curves, defects: Sequence[Defect], fps: float, lips_at: LipTrack
) -> Curves:
    """Return the curves as shown: lip and motion defects applied, others left alone.

    Args:
        curves: The clean curves.
        defects: What to apply (quality defects are ignored).
        fps: Frames a second.
        lips_at: Gives the lip curves of the clip at another place of the utterance.
    """
    table = curves.stack()
    names = list(Curves.names())
    lip = [names.index(name) for name in LIPS]
    motion = [names.index(name) for name in MOTION]
    for defect in defects:
        rng = np.random.default_rng([defect.seed, 11])
        if defect.dimension == "lip":
            table[:, lip] = _lips(table[:, lip], defect, rng, fps, lips_at)
        elif defect.dimension == "motion":
            table[:, motion] = _motion(table[:, motion], defect, rng, fps)
    table[0] = curves.stack()[0]
    return Curves.unstack(table)


def apply_to_frames(frames: Frames, defects: Sequence[Defect]) -> Frames:
    """Return uint8 [F, H, W, 3] with the quality defects applied from frame 1 on."""
    result = frames.copy()
    for defect in defects:
        if defect.dimension == "quality":
            rng = np.random.default_rng([defect.seed, 13])
            spoil = QUALITY[defect.name](defect.strength, rng)
            result[1:] = np.stack([spoil(frame) for frame in result[1:]])
    return result


def _lips(
    lips: Array, defect: Defect, rng: np.random.Generator, fps: float, lips_at: LipTrack
) -> Array:
    strength, count = defect.strength, len(lips)
    if defect.name == "offset":
        return _worst(lips, [lips_at(sign * (0.2 + 0.3 * strength)) for sign in _signs(rng)])
    if defect.name == "shift":
        first = round((0.25 + 0.3 * strength) * fps)
        rolls = [first + extra for extra in (0, 1, 2)]
        return _worst(lips, [np.roll(lips, sign * r, 0) for r in rolls for sign in _signs(rng)])
    if defect.name == "shuffle":
        size = max(round(0.24 * fps), 1)
        orders = [rng.permutation(-(-(count - 1) // size)) for _ in range(4)]
        return _worst(lips, [_blocks(lips, order, size) for order in orders])
    if defect.name == "mute":
        return lips * (0.45 * (1.0 - strength))
    time = np.arange(count) / fps
    rate = rng.uniform(3.0, 4.5)
    beat = 0.5 - 0.5 * np.cos(2 * np.pi * rate * time + rng.uniform(0, 2 * np.pi))
    flap = np.zeros_like(lips)
    flap[:, 0] = beat * (0.35 + 0.45 * strength)
    return flap


def _signs(rng: np.random.Generator) -> tuple[int, int]:
    return (1, -1) if rng.random() < 0.5 else (-1, 1)


def _blocks(lips: Array, order: NDArray[np.int64], size: int) -> Array:
    pieces = [lips[1 + k * size : 1 + (k + 1) * size] for k in order]
    return np.concatenate([lips[:1], *pieces])


def _worst(clean: Array, candidates: Sequence[Array]) -> Array:
    """Return the first candidate that clearly differs from the clean lips, else the worst."""
    scores = [concordance(clean[:, 0], candidate[:, 0]) for candidate in candidates]
    for candidate, score in zip(candidates, scores, strict=True):
        if score < 0.35:
            return candidate
    return candidates[int(np.argmin(scores))]


def concordance(a: Array, b: Array) -> float:
    """Return Lin's concordance correlation coefficient of two tracks [F] (1: equal)."""
    spread = float(a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / max(spread, 1e-9))


def _motion(table: Array, defect: Defect, rng: np.random.Generator, fps: float) -> Array:
    strength, count = defect.strength, len(table)
    pose = [MOTION.index(name) for name in _POSE]
    if defect.name == "frozen":
        return np.repeat(table[:1], count, 0)
    if defect.name == "jitter":
        size = np.array([0.05, 0.05, 0.035, 0.06, 0.06]) * (0.45 + 0.55 * strength)
        table = table.copy()
        table[:, pose] += (rng.standard_normal((count, 5)) * size).astype(np.float32)
        return table
    if defect.name == "jump":
        return _jump(table, pose, strength, rng)
    if defect.name == "robot":
        hold = round((0.32 + 0.16 * strength) * fps)
        wide = table.copy()
        wide[:, pose] *= 1.5 + 0.7 * strength
        index = (np.arange(count) // hold) * hold + hold // 2
        held = wide[np.clip(index, 0, count - 1)]
        held[: hold // 2 + 1] = table[0]
        return held
    return _stutter(table, pose, strength, rng)


def _jump(table: Array, pose: list[int], strength: float, rng: np.random.Generator) -> Array:
    count = len(table)
    result = table.copy()
    moments = rng.choice(np.arange(4, count - 3), size=2 if strength > 0.7 else 1, replace=False)
    for moment in sorted(int(m) for m in moments):
        angle = rng.uniform(0, 2 * np.pi)
        size = 0.17 + 0.15 * strength
        step = [0.08 * np.cos(angle), 0.06 * np.sin(angle), rng.uniform(-0.07, 0.07)]
        step += [size * np.cos(angle), 0.8 * size * np.sin(angle)]
        result[moment:, pose] += np.array(step, np.float32)
    return result


def _stutter(table: Array, pose: list[int], strength: float, rng: np.random.Generator) -> Array:
    """Play the motion like a hanging disc: stretches of frames are shown again and again."""
    count, length = len(table), 3 + int(rng.integers(2))
    wide = table.copy()
    wide[:, pose] *= 1.4 + 0.4 * strength
    order = list(range(int(rng.integers(4, 7))))
    while len(order) < count:
        repeats = 1 + round(2 * strength)
        order += order[-length:] * repeats
        last = order[-1]
        order += list(range(last + 1, last + 1 + length + int(rng.integers(3))))
    return wide[np.clip(order[:count], 0, count - 1)]
