"""The shipped faces, and how many identities are made of them.

Sources and licences of the faces: `faces/SOURCES.md`. Splits are by real face: a variation or a
blend never leaves the split of the faces it was made from.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ft2 import faces, media
from ft2.errors import UsageError
from ft2.puppet import colour
from ft2.puppet import topology as topo
from ft2.puppet.fields import Array, Spline, invert, upsample
from ft2.puppet.portrait import CANVAS, MARGIN, UNIT, Identity, fill_background, prepare

FACES_DIR = Path(__file__).parent / "faces"
SPLITS = ("train", "dev", "test")

Image = NDArray[np.uint8]
_STEP = 4
_CONTROLS = [*topo.OVAL, *topo.LEFT_UPPER_LID, *topo.RIGHT_UPPER_LID, *topo.NOSE]
_CONTROLS += [*topo.LEFT_LOWER_LID[1:-1], *topo.RIGHT_LOWER_LID[1:-1]]
_CONTROLS += [*topo.LEFT_BROW[:5], *topo.RIGHT_BROW[:5], *topo.UPPER_OUTER, *topo.LOWER_OUTER]
_CONTROLS += [topo.LEFT_CORNER, topo.RIGHT_CORNER, *topo.CHEEKS, 6, 168, 18, 200]
_CONTROLS = list(dict.fromkeys(_CONTROLS))


@lru_cache(maxsize=1)
def index() -> dict[str, dict[str, str]]:
    """Return what is known of each shipped face: split, source, licence, credit."""
    found: dict[str, dict[str, str]] = json.loads((FACES_DIR / "index.json").read_text())
    return found


def names(split: str | None = None) -> list[str]:
    """Return the names of the shipped faces, of one split or of all, sorted.

    Raises:
        UsageError: Unknown split.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"unknown split '{split}'", f"choose one of {', '.join(SPLITS)}")
    return sorted(n for n, about in index().items() if split in (None, about["split"]))


@lru_cache(maxsize=128)
def load(name: str) -> Identity:
    """Return a shipped face by name.

    Raises:
        UsageError: No such face.
    """
    if name not in index():
        raise UsageError(f"unknown face '{name}'", f"choose one of {', '.join(names())}")
    image = media.read_image(FACES_DIR / f"{name}.jpg")
    matte = cv2.imread(str(FACES_DIR / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    points = _landmarks()[name].astype(np.float32)
    mask = np.asarray(matte, np.uint8)
    return Identity(name, image, points, mask, fill_background(image, mask))


@lru_cache(maxsize=1)
def _landmarks() -> dict[str, Any]:
    with np.load(FACES_DIR / "landmarks.npz") as stored:
        return {name: stored[name] for name in stored.files}


def from_portrait(path: str | Path) -> Identity:
    """Make an identity of a picture file; its id is the file's stem.

    Raises:
        NoFace: No face in the picture.
        UsageError: Unreadable picture.
        MissingExtra: mediapipe is not installed.
    """
    return prepare(media.read_image(path), Path(path).stem)


def draw(split: str, seed: int) -> Identity:
    """Return a new person: a variation of a face of `split`, or of two of them blended."""
    rng = np.random.default_rng([seed, 3])
    pool = names(split)
    first, second = rng.choice(len(pool), 2, replace=len(pool) < 2)
    identity = load(pool[first])
    if rng.random() < 0.4:
        identity = blend(identity, load(pool[second]), float(rng.uniform(0.7, 1.0)))
    return vary(identity, seed)


def vary(identity: Identity, seed: int) -> Identity:
    """Return another person made of this one; same seed, same person.

    The face mesh is reshaped, light, skin, hair, clothes and background change, and half of the
    pictures are flipped. The id is that of the original with the seed appended.
    """
    rng = np.random.default_rng([seed, 5])
    varied = _reshape(identity, rng)
    if rng.random() < 0.5:
        varied = _flip(varied)
    skin = colour.skin_mask(varied.image, varied.landmarks, varied.matte, UNIT)
    image = colour.recolour(varied.image, skin, varied.matte, rng, 0.9)
    background = varied.background
    if rng.random() < 0.75:
        background = colour.backdrop(background, rng)
    light = int(rng.integers(2**31))
    image = colour.relight(image, np.random.default_rng(light))
    background = colour.relight(background, np.random.default_rng(light))
    alpha = varied.matte[..., None] / 255.0
    image = np.asarray(background + (image - background.astype(np.float32)) * alpha, np.uint8)
    name = f"{identity.identity_id}-v{seed}"
    return replace(varied, identity_id=name, image=image, background=background)


def blend(body: Identity, face: Identity, amount: float) -> Identity:
    """Return `body` with the inner face of `face` laid over it by `amount` in [0, 1].

    Colours of the face are matched to the body's skin (mean and spread in L*a*b*).
    """
    here = body.landmarks[_CONTROLS, :2]
    spline = Spline(here, (0, 0, CANVAS, CANVAS), _STEP, ridge=1e-2)
    shift = spline.dense(face.landmarks[_CONTROLS, :2] - here)
    grid = np.stack(np.meshgrid(np.arange(CANVAS), np.arange(CANVAS)), -1).astype(np.float32)
    other = cv2.remap(face.image, grid + shift, None, cv2.INTER_LINEAR)
    oval = np.zeros((CANVAS, CANVAS), np.float32)
    cv2.fillPoly(oval, [np.round(body.landmarks[topo.OVAL, :2]).astype(np.int32)], 1.0)
    inside = cv2.erode(oval, np.ones((13, 13), np.uint8))
    mask = cv2.GaussianBlur(cv2.erode(oval, np.ones((17, 17), np.uint8)), (0, 0), 5)[..., None]
    mine = cv2.cvtColor(body.image, cv2.COLOR_RGB2LAB).astype(np.float32)
    theirs = cv2.cvtColor(np.asarray(other, np.uint8), cv2.COLOR_RGB2LAB).astype(np.float32)
    for channel in range(3):
        a, b = mine[..., channel], theirs[..., channel]
        gain = np.clip(a[inside > 0].std() / max(b[inside > 0].std(), 1.0), 0.7, 1.3)
        theirs[..., channel] = (b - b[inside > 0].mean()) * gain + a[inside > 0].mean()
    mixed = np.clip(mine + (theirs - mine) * mask * amount, 0, 255).astype(np.uint8)
    image = np.asarray(cv2.cvtColor(mixed, cv2.COLOR_LAB2RGB), np.uint8)
    return replace(body, identity_id=f"{body.identity_id}+{face.identity_id}", image=image)


def _reshape(identity: Identity, rng: np.random.Generator) -> Identity:
    points = identity.landmarks
    rim = [(x, y) for x in np.linspace(0, CANVAS, 6) for y in (0.0, float(CANVAS))]
    rim += [(x, y) for x in (0.0, float(CANVAS)) for y in np.linspace(0, CANVAS, 6)[1:-1]]
    controls = np.concatenate([points[_CONTROLS, :2], np.array(rim, np.float32)])
    shape = np.zeros((len(controls), 2), np.float32)
    shape[: len(_CONTROLS)] = _random_shape(points, rng)[_CONTROLS]
    spline = Spline(controls, (0, 0, CANVAS, CANVAS), _STEP, ridge=1e-2)
    moved = points.copy()
    moved[:, :2] += spline.at(points[:, :2], shape)
    backward = invert(np.asarray(spline.coarse(shape) / _STEP, np.float32)) * _STEP
    field = upsample(np.asarray(backward, np.float32), (0, 0, CANVAS, CANVAS), _STEP)
    x0, y0, x1, y1 = faces.aligned_box(moved)
    extra = (x1 - x0) * MARGIN / (CANVAS - 2 * MARGIN)
    box = (x0 - extra, y0 - extra, x1 + extra, y1 + extra)
    scale = (box[2] - box[0]) / CANVAS
    axis = (np.arange(CANVAS) + 0.5) * scale - 0.5
    grid = np.stack(np.meshgrid(axis + box[0], axis + box[1]), -1).astype(np.float32)
    source = grid - cv2.remap(field, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    both = np.dstack([identity.image, identity.matte])
    both = cv2.remap(both, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    back = cv2.remap(
        identity.background, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return replace(
        identity,
        image=np.ascontiguousarray(both[..., :3]),
        matte=np.ascontiguousarray(both[..., 3]),
        background=np.asarray(back, np.uint8),
        landmarks=faces.to_crop(moved, box, CANVAS),
    )


def _random_shape(points: Array, rng: np.random.Generator) -> Array:
    """Return random landmark displacements [478, 2] in pixels that keep a face a face."""
    middle = points[topo.OVAL, :2].mean(0)
    offset = points[:, :2] - middle
    shape = offset * rng.normal(0, [0.05, 0.04])
    low = np.clip(offset[:, 1] / (1.2 * UNIT), 0, 1)
    shape[:, 0] += offset[:, 0] * low * rng.normal(0, 0.09)
    shape[:, 1] += low * UNIT * rng.normal(0, 0.06)
    nose = points[4, :2]
    for part, spread in (
        ([*topo.LEFT_UPPER_LID, *topo.LEFT_LOWER_LID], 0.09),
        ([*topo.RIGHT_UPPER_LID, *topo.RIGHT_LOWER_LID], 0.09),
    ):
        part_centre = points[part, :2].mean(0)
        state = rng.bit_generator.state
        shape[part] += (points[part, :2] - part_centre) * rng.normal(0, spread)
        rng.bit_generator.state = state
    rng.normal()
    shape[topo.NOSE] += (points[topo.NOSE, :2] - nose) * rng.normal(0, [0.12, 0.10])
    lips = [*topo.UPPER_OUTER, *topo.LOWER_OUTER, *topo.UPPER_INNER, *topo.LOWER_INNER]
    lips += [topo.LEFT_CORNER, topo.RIGHT_CORNER]
    mouth = points[lips, :2].mean(0)
    shape[lips] += (points[lips, :2] - mouth) * rng.normal(0, [0.07, 0.16])
    brows = [*topo.LEFT_BROW, *topo.RIGHT_BROW]
    shape[brows, 1] += UNIT * rng.normal(0, 0.04)
    return np.asarray(shape, np.float32)


def _flip(identity: Identity) -> Identity:
    points = identity.landmarks[mirror_order()].copy()
    points[:, 0] = CANVAS - 1 - points[:, 0]
    flipped = [
        np.ascontiguousarray(part[:, ::-1])
        for part in (identity.image, identity.matte, identity.background)
    ]
    return replace(
        identity, image=flipped[0], matte=flipped[1], background=flipped[2], landmarks=points
    )


@lru_cache(maxsize=1)
def mirror_order() -> NDArray[np.int64]:
    """Return for each landmark the index of its mirror image [478]."""
    mean = np.mean([points[:, :3].astype(np.float64) for points in _landmarks().values()], 0)
    mirrored = mean * np.array([-1.0, 1.0, 1.0]) + np.array([2 * mean[:, 0].mean(), 0.0, 0.0])
    cost = ((mean[:, None] - mirrored[None]) ** 2).sum(-1)
    for first, second in topo.MIRRORED:
        cost[first, second] = cost[second, first] = -1e9
    return np.asarray(linear_sum_assignment(cost)[1], np.int64)
