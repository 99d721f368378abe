"""A probe of one known face: reads mouth and head from pixels and knows how clean frames look.

It is fitted to a few hundred clean renderings of that identity with random curves, and to nothing
else: no model, no label, no audio. So it can judge generated clips of that face apart from all
that any model was trained on. Trackers are ridge regressions on second-order terms of principal
components (quadratic kernel ridge in an explicit basis), fitted with mild blur, noise, colour and
pixel-block augmentation so that they still follow degraded frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.config import ClipFormat
from ft2.puppet.curves import Curves
from ft2.puppet.portrait import Identity
from ft2.puppet.render import Puppet

Array = NDArray[np.float32]
Frames = NDArray[np.uint8]

SIDE = 64
"""Frames are judged at this size; larger ones are reduced to it."""

UNIT = 0.30 * SIDE
"""Pixels in a face unit (eyes to mouth)."""

POSE = ("across", "along", "roll", "yaw", "pitch")
"""What the head tracker reads: the face's place (face units) and its rotations (rad)."""

_LIPS_AT = (slice(36, 60), slice(15, 49))
_FACE_AT = (slice(10, 58), slice(10, 54))
_PIVOT = np.array([0.5 * SIDE, 0.70 * SIDE])
_NATURAL = np.array([0.06, 0.05, 0.03, 0.06, 0.05], np.float32)
_CROSS = 0.3


@dataclass(frozen=True)
class Tracks:
    """What the probe read from a clip.

    Attributes:
        lips: float32 [F, 2], open and width in the units of `Curves`.
        pose: float32 [F, 5], see `POSE`.
    """

    lips: Array
    pose: Array


@dataclass(frozen=True)
class Reader:
    """Ridge regression from pixels to targets through principal components and their products."""

    mean: Array
    basis: Array
    weights: Array
    offset: Array

    @staticmethod
    def fit(clean: Array, features: Array, targets: Array, components: int, ridge: float) -> Reader:
        """Fit on features [N, D] and targets [N, T]; components come from `clean` [M, D]."""
        mean, basis, _ = principal(clean, components)
        spread = ((features - mean) @ basis).std(0)
        basis = np.asarray(basis / np.maximum(spread, 1e-6), np.float32)
        terms = _products(np.asarray((features - mean) @ basis, np.float32))
        centre, offset = terms.mean(0), targets.mean(0)
        terms = terms - centre
        gram = terms.T @ terms
        gram += np.eye(len(gram)) * (ridge * np.trace(gram) / len(gram))
        weights = np.linalg.solve(gram, terms.T @ (targets - offset))
        start = offset - centre @ weights
        fields = (mean, basis, weights, start)
        return Reader(*[np.asarray(field, np.float32) for field in fields])

    def read(self, features: Array) -> Array:
        """Return targets [N, T] of features [N, D]."""
        components = np.asarray((features - self.mean) @ self.basis, np.float32)
        found = _products(components) @ self.weights + self.offset
        return np.asarray(found, np.float32)


@dataclass(frozen=True)
class PuppetProbe:
    """See the module docstring; make one with `PuppetProbe.fit`.

    Attributes:
        identity_id: The face it knows.
        pose_reader: Reads `POSE` from 16x16 thumbnails.
        lip_reader: Reads open and width from the steadied mouth.
        face_mean: Mean of steadied clean faces, float32 [D].
        face_basis: Their principal components, float32 [D, K].
        band_floor: Mean log distance of unseen clean frames to the subspace, [3] bands.
        detail_mean: Mean log fine detail of clean frames.
    """

    identity_id: str
    pose_reader: Reader
    lip_reader: Reader
    face_mean: Array
    face_basis: Array
    band_floor: Array
    detail_mean: float

    @staticmethod
    def fit(
        identity: Identity, clip: ClipFormat, seed: int = 0, num_frames: int = 500
    ) -> PuppetProbe:
        """Render `num_frames` clean frames of `identity` and fit everything to them.

        Args:
            identity: The face; the very same as in the clips to judge.
            clip: Format of the clips (their size only).
            seed: Seeds curves and augmentation; equal seeds give equal probes.
            num_frames: Frames to render; 500 take 0.8 s on one core.
        """
        rng = np.random.default_rng([seed, 64])
        puppet = Puppet(identity, clip.width)
        table = random_table(num_frames, rng)
        clean = _reduced(puppet.frames(Curves.unstack(table))).astype(np.float32)
        frames = np.concatenate([clean, _degraded(clean, rng)])
        targets = np.concatenate([pose_of(table)] * 2)
        pose = Reader.fit(_thumbnails(clean), _thumbnails(frames), targets, 40, 1e-2)
        steady = _steadied(frames, pose.read(_thumbnails(frames)))
        mouths = _part(steady, _LIPS_AT)
        lips = np.concatenate([table[:, :2]] * 2)
        reader = Reader.fit(mouths[:num_frames], mouths, lips, 30, 1e-2)
        detail = float(_detail(clean).mean())
        return _with_subspace(identity.identity_id, pose, reader, steady[:num_frames], detail)

    def track(self, frames: Frames) -> Tracks:
        """Read lips and head from uint8 [F, H, W, 3]."""
        return self._look(frames)[0]

    def distances(self, frames: Frames) -> tuple[Tracks, Array, Array]:
        """Return tracks, log distance to clean faces [F, 3 bands], and log detail [F].

        Both are 0 for an unseen clean frame. Bands go from coarse to fine. Detail is the log
        amplitude of the Laplacian relative to clean frames: negative when blurred, positive when
        noisy.
        """
        tracks, steady, pictures = self._look(frames)
        bands = _bands(_residual(steady, self.face_mean, self.face_basis))
        return tracks, np.log(bands) - self.band_floor, _detail(pictures) - self.detail_mean

    def _look(self, frames: Frames) -> tuple[Tracks, Array, Array]:
        pictures = _reduced(frames).astype(np.float32)
        pose = self.pose_reader.read(_thumbnails(pictures))
        steady = _steadied(pictures, pose)
        return Tracks(self.lip_reader.read(_part(steady, _LIPS_AT)), pose), steady, pictures


def principal(rows: Array, components: int) -> tuple[Array, Array, Array]:
    """Return mean [D], principal axes [D, K] and variances [K] of rows [N, D]."""
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    values, vectors = values[::-1][:components], vectors[:, ::-1][:, :components]
    axes = (centred.T @ vectors) / np.sqrt(np.maximum(values, 1e-9))
    return mean, axes.astype(np.float32), (values / len(rows)).astype(np.float32)


def random_table(count: int, rng: np.random.Generator) -> Array:
    """Return curves [count, 13] of unrelated frames: all mouths, and poses well beyond natural."""
    table = np.zeros((count, len(Curves.names())), np.float32)
    table[:, 0] = 1.1 * rng.random(count) ** 1.3
    table[:, 1] = rng.uniform(-1, 1, count)
    kind = rng.random(count)
    pressed, tucked, shut = kind < 0.08, (kind >= 0.08) & (kind < 0.15), kind < 0.22
    table[shut, 0] *= 0.1
    table[pressed, 2] = rng.random(int(pressed.sum()))
    table[tucked, 3] = rng.random(int(tucked.sum()))
    table[:, 4] = np.where(rng.random(count) < 0.15, rng.random(count), 0)
    table[:, 5] = rng.normal(0.1, 0.35, count)
    wide = rng.choice([1.0, 2.0, 4.0], (count, 1))
    table[:, 6:11] = rng.standard_normal((count, 5)) * _NATURAL * wide
    table[:, 11] = rng.normal(0, 0.03, count)
    table[:, 12] = rng.normal(0, 0.12, count)
    return table


def pose_of(table: Array) -> Array:
    """Return the true `POSE` float32 [F, 5] of curves [F, 13] (`Curves.stack`)."""
    yaw, pitch, roll, right, down = table[:, 6:11].T
    across = right + 1.1 * yaw + 0.8 * roll
    return np.stack([across, down + 1.1 * pitch, roll, yaw, pitch], -1).astype(np.float32)


def _with_subspace(
    name: str, pose: Reader, lips: Reader, steady: Array, detail: float
) -> PuppetProbe:
    """Keep a fifth of the clean frames apart, to know how far unseen clean frames lie."""
    faces = _part(steady, _FACE_AT)
    held = np.arange(len(faces)) % 5 == 0
    mean, basis, _ = principal(faces[~held], 64)
    bands = _bands(_residual(steady[held], mean, basis))
    floor = np.log(bands).mean(0).astype(np.float32)
    return PuppetProbe(name, pose, lips, mean, basis, floor, detail)


def _products(z: Array) -> Array:
    rows, columns = np.triu_indices(z.shape[1])
    return np.concatenate([z, _CROSS * z[:, rows] * z[:, columns]], axis=1)


def _reduced(frames: Frames) -> Frames:
    if frames.shape[1] == SIDE:
        return frames
    size = (SIDE, SIDE)
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])


def _thumbnails(frames: Array) -> Array:
    small = [cv2.resize(f, (16, 16), interpolation=cv2.INTER_AREA) for f in frames]
    return np.asarray(np.stack(small).reshape(len(frames), -1) / 255, np.float32)


def _steadied(frames: Array, pose: Array) -> Array:
    """Undo the tracked shift and roll, about the resting place of the mouth."""
    result = np.empty_like(frames)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for index, (across, along, roll) in enumerate(pose[:, :3].astype(np.float64)):
        cos, sin = np.cos(roll), np.sin(roll)
        turn = np.array([[cos, -sin], [sin, cos]])
        shift = _PIVOT + UNIT * np.array([across, along]) - turn @ _PIVOT
        place = np.concatenate([turn, shift[:, None]], axis=1)
        cv2.warpAffine(
            frames[index], place, (SIDE, SIDE), dst=result[index], flags=flags,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
    return result


def _part(frames: Array, place: tuple[slice, slice]) -> Array:
    part = frames[:, place[0], place[1]].reshape(len(frames), -1)
    return np.asarray(part / np.float32(255), np.float32)


def _residual(steady: Array, mean: Array, basis: Array) -> Array:
    """Return what the clean subspace cannot explain, [F, h, w, 3] in parts of full scale."""
    faces = _part(steady, _FACE_AT) - mean
    rest = faces - (faces @ basis) @ basis.T
    return np.asarray(rest.reshape(len(steady), *steady[0][_FACE_AT].shape), np.float32)


def _bands(residual: Array) -> Array:
    """Return the RMS of coarse, middle and fine parts of residuals, [F, 3]."""
    coarse = np.stack([cv2.GaussianBlur(r, (0, 0), 3) for r in residual])
    middle = np.stack([cv2.GaussianBlur(r, (0, 0), 1) for r in residual])
    parts = (coarse, middle - coarse, residual - middle)
    return np.stack([np.sqrt((p**2).mean((1, 2, 3)) + 1e-8) for p in parts], 1)


def _detail(frames: Array) -> Array:
    """Return the log RMS of the Laplacian of each face [F], of frames that are not steadied."""
    faces = frames[:, _FACE_AT[0], _FACE_AT[1]].mean(axis=3)
    fine = [cv2.Laplacian(f, cv2.CV_32F) for f in faces]
    return np.asarray([np.log(np.sqrt((f**2).mean()) + 0.1) for f in fine], np.float32)


def _degraded(frames: Array, rng: np.random.Generator) -> Array:
    """Return each frame with one mild degradation: blur, noise, colour, JPEG, or pixel blocks."""
    result = []
    for frame in frames:
        kind, amount = rng.integers(5), rng.random()
        if kind == 0:
            changed = cv2.GaussianBlur(frame, (0, 0), 0.4 + 1.2 * amount)
        elif kind == 1:
            changed = frame + rng.normal(0, 3 + 17 * amount, frame.shape)
        elif kind == 2:
            changed = frame * rng.uniform(0.8, 1.2, 3) + rng.normal(0, 6)
        elif kind == 3:
            quality = [cv2.IMWRITE_JPEG_QUALITY, round(40 - 36 * amount)]
            _, data = cv2.imencode(".jpg", frame.astype(np.uint8), quality)
            changed = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.float32)
        else:
            size = round(SIDE / (1.5 + 2 * amount))
            small = cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
            changed = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        result.append(np.clip(changed, 0, 255))
    return np.asarray(result, np.float32)
