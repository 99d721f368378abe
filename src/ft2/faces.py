"""Face landmarks, the aligned face crop, and the lip mask.

Landmarks are the 478 points of MediaPipe's face mesh with iris refinement (478 = 468 + 2 x 5), in
pixels of the picture that was given: x right, y down, z in the same unit (negative is nearer).
The mesh's point numbers are those of the canonical face model of google-ai-edge/mediapipe.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.errors import MissingExtra, UsageError

NUM_LANDMARKS = 478
MOUTH_BOX = (0.26, 0.56, 0.74, 0.88)
"""x0, y0, x1, y1 of the mouth in an aligned crop, as parts of its side."""

EYE_LINE, MOUTH_LINE = 0.40, 0.70
"""Heights of the eye midpoint and of the mouth centre in an aligned crop, as parts of its side."""

LIPS_OUTER = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375]
LIPS_OUTER += [291, 409, 270, 269, 267, 0, 37, 39, 40, 185]
"""Outer edge of the lips, a closed ring from the picture-left corner along the lower lip."""

LIPS_INNER = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324]
LIPS_INNER += [308, 415, 310, 311, 312, 13, 82, 81, 80, 191]
"""Inner edge of the lips, a closed ring from the picture-left corner along the lower lip."""

_EYE_CORNERS = [33, 133, 362, 263]
_MOUTH_CORNERS = [61, 291]
_MIN_SIDE = 256
_local = threading.local()

Image = NDArray[np.uint8]
Landmarks = NDArray[np.float32]
Box = tuple[float, float, float, float]


class NoFace(UsageError):
    """No face was found in a picture that must show one."""


def landmarks(image: Image) -> Landmarks:
    """Return the landmarks float32 [478, 3] (pixels) of the largest face in uint8 [H, W, 3].

    Raises:
        NoFace: No face was found.
        MissingExtra: mediapipe is not installed.
    """
    return every_face(image)[0]


def every_face(image: Image) -> list[Landmarks]:
    """Return the landmarks float32 [478, 3] (pixels) of up to four faces, largest first.

    Raises:
        NoFace: No face was found.
        MissingExtra: mediapipe is not installed.
    """
    found = _detect(image)
    if not found:
        height, width = image.shape[:2]
        raise NoFace(
            f"no face in the {width}x{height} picture",
            "give a portrait of one person, seen from the front and at least 64 pixels wide",
        )
    return found


def face_box(points: Landmarks) -> Box:
    """Return x0, y0, x1, y1 (pixels) around the landmarks of one face."""
    (x0, y0), (x1, y1) = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def track(frames: Image) -> Landmarks:
    """Return landmarks float32 [F, 478, 3] (pixels) of uint8 [F, H, W, 3]; nan where lost.

    Each frame is taken by itself, so that the result of one does not depend on the others.
    """
    lost = np.full((NUM_LANDMARKS, 3), np.nan, np.float32)
    found = [_detect(frame) for frame in frames]
    return np.stack([points[0] if points else lost for points in found])


def aligned_box(points: Landmarks) -> Box:
    """Return the square x0, y0, x1, y1 (pixels, may leave the picture) of the aligned crop.

    The square is upright (no rotation). In it the midpoint of the eye corners lies at
    (0.5, 0.40) and the midpoint of the mouth corners at height 0.70.
    """
    eyes = points[_EYE_CORNERS, :2].mean(axis=0)
    mouth = points[_MOUTH_CORNERS, :2].mean(axis=0)
    side = max(float(mouth[1] - eyes[1]), 1.0) / (MOUTH_LINE - EYE_LINE)
    left, top = float(eyes[0]) - 0.5 * side, float(eyes[1]) - EYE_LINE * side
    return left, top, left + side, top + side


def crop(image: Image, box: Box, size: int, height: int | None = None) -> Image:
    """Return `box` of uint8 [H, W, 3] as uint8 [size, size, 3], edges repeated outside.

    With ``height`` the result is [height, size, 3]; the box must have the same aspect.
    """
    height = size if height is None else height
    scale = (box[2] - box[0]) / size
    fine = max(1, round(scale))
    step = scale / fine
    offset = (step - 1) / 2
    place = np.array([[step, 0, box[0] + offset], [0, step, box[1] + offset]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(
        image, place, (size * fine, height * fine), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(cv2.resize(warped, (size, height), interpolation=cv2.INTER_AREA), np.uint8)


def align(image: Image, size: int = 64, margin: float = 0.0) -> Image:
    """Return the aligned face crop uint8 [size, size, 3] of uint8 [H, W, 3].

    Args:
        image: A picture with a face.
        size: Side of the crop in pixels.
        margin: Part of the side added all around (0 is the clip format's own crop).

    Raises:
        NoFace: No face was found.
    """
    x0, y0, x1, y1 = aligned_box(landmarks(image))
    extra = margin * (x1 - x0)
    return crop(image, (x0 - extra, y0 - extra, x1 + extra, y1 + extra), size)


def to_crop(points: Landmarks, box: Box, size: int) -> Landmarks:
    """Return landmarks [..., 478, 3] moved from picture pixels to pixels of `crop`."""
    scale = size / (box[2] - box[0])
    corner = np.array([box[0], box[1], 0.0], np.float32)
    return ((points - corner) * np.float32(scale)).astype(np.float32)


def lip_mask(points: Landmarks, height: int, width: int) -> NDArray[np.bool_]:
    """Return bool [height, width], True inside the outer edge of the lips of `points` [478, 3]."""
    mask = np.zeros((height, width), np.uint8)
    ring = np.round(points[LIPS_OUTER, :2] * 16).astype(np.int32)
    cv2.fillPoly(mask, [ring], 1, shift=4)
    return mask.astype(bool)


def mouth_slice(size: int) -> tuple[slice, slice]:
    """Return the (rows, columns) of `MOUTH_BOX` in an aligned crop of side `size`."""
    x0, y0, x1, y1 = (round(part * size) for part in MOUTH_BOX)
    return slice(y0, y1), slice(x0, x1)


def _detect(image: Image) -> list[Landmarks]:
    """Find faces, largest first: as given, then with a wide border (one fills the picture)."""
    height, width = image.shape[:2]
    scale = max(1.0, _MIN_SIDE / min(height, width))
    shown = image
    if scale > 1:
        size = (round(width * scale), round(height * scale))
        shown = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    found = _by_size(shown)
    if not found:
        border = max(shown.shape[:2]) // 3
        sides = (border, border, border, border)
        wide = cv2.copyMakeBorder(shown, *sides, borderType=cv2.BORDER_REPLICATE)
        found = _by_size(np.asarray(wide, np.uint8))
        for points in found:
            points[:, :2] -= border
    stretch = (width / shown.shape[1], height / shown.shape[0], width / shown.shape[1])
    return [(points * np.array(stretch, np.float32)).astype(np.float32) for points in found]


def _by_size(image: Image) -> list[Landmarks]:
    mesh = _face_mesh()
    faces = mesh.process(np.ascontiguousarray(image)).multi_face_landmarks or []
    height, width = image.shape[:2]
    unit = np.array([width, height, width], np.float32)
    every = [np.array([[p.x, p.y, p.z] for p in f.landmark], np.float32) * unit for f in faces]
    return sorted(every, key=lambda points: -float(np.prod(np.ptp(points[:, :2], axis=0))))


def _face_mesh() -> Any:
    """Return this thread's face mesh, made once and warmed up with its chatter switched off."""
    if not hasattr(_local, "mesh"):
        warnings.filterwarnings("ignore", message=r"SymbolDatabase\.GetPrototype")
        with quiet():
            try:
                from mediapipe.python.solutions.face_mesh import FaceMesh
            except ImportError as error:
                raise MissingExtra("mediapipe", "face") from error
            mesh = FaceMesh(static_image_mode=True, max_num_faces=4, refine_landmarks=True)
            mesh.process(np.zeros((_MIN_SIDE, _MIN_SIDE, 3), np.uint8))
        _local.mesh = mesh
    return _local.mesh


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send the process's standard error to nowhere: MediaPipe's C++ log has no other switch."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def face_confidences(image: Image) -> list[float]:
    """Return the detector's confidence in [0, 1] of each face in uint8 [H, W, 3], best first.

    A face that fills the picture is looked for again with a wide border around it.

    Raises:
        MissingExtra: mediapipe is not installed.
    """
    height, width = image.shape[:2]
    scale = max(1.0, _MIN_SIDE / min(height, width))
    size = (round(width * scale), round(height * scale))
    shown = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if scale > 1 else image
    border = max(size) // 3
    wide = cv2.copyMakeBorder(
        shown, border, border, border, border, borderType=cv2.BORDER_REPLICATE
    )
    detector = _face_detector()
    both = [detector.process(np.ascontiguousarray(p)).detections or [] for p in (shown, wide)]
    scores = [sorted((float(d.score[0]) for d in found), reverse=True) for found in both]
    return max(scores, key=lambda found: found[:1])


def _face_detector() -> Any:
    """Return this thread's short-range face detector, made once and warmed up in silence."""
    if not hasattr(_local, "detector"):
        warnings.filterwarnings("ignore", message=r"SymbolDatabase\.GetPrototype")
        with quiet():
            try:
                from mediapipe.python.solutions.face_detection import FaceDetection
            except ImportError as error:
                raise MissingExtra("mediapipe", "face") from error
            detector = FaceDetection(model_selection=0, min_detection_confidence=0.3)
            detector.process(np.zeros((_MIN_SIDE, _MIN_SIDE, 3), np.uint8))
        _local.detector = detector
    return _local.detector


def person_mask(image: Image) -> NDArray[np.bool_]:
    """Return bool [H, W], True on people, of uint8 [H, W, 3], by MediaPipe's selfie segmentation.

    Raises:
        MissingExtra: mediapipe is not installed.
    """
    found = _segmenter().process(np.ascontiguousarray(image)).segmentation_mask
    return np.asarray(found > 0.5)


def _segmenter() -> Any:
    """Return this thread's segmenter, made once and warmed up in silence."""
    if not hasattr(_local, "segmenter"):
        warnings.filterwarnings("ignore", message=r"SymbolDatabase\.GetPrototype")
        with quiet():
            try:
                from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation
            except ImportError as error:
                raise MissingExtra("mediapipe", "face") from error
            segmenter = SelfieSegmentation(model_selection=0)
            segmenter.process(np.zeros((_MIN_SIDE, _MIN_SIDE, 3), np.uint8))
        _local.segmenter = segmenter
    return _local.segmenter
