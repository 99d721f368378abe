"""Checking and loading of what the user gives: a portrait and a sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ft2 import faces, media, speech
from ft2.config import ClipFormat
from ft2.errors import UsageError

CLIPPED = 0.999
"""Samples at least this loud count as clipped."""
MIN_SCALE = 0.25
"""A portrait is refused when its face must be enlarged more than by one over this."""


@dataclass(frozen=True)
class Portrait:
    """An aligned portrait.

    Attributes:
        picture: uint8 [height, width, 3], of the clip's size.
        remarks: what a person should know about how it was made.
    """

    picture: NDArray[np.uint8]
    remarks: list[str]


def load_portrait(path: str | Path, clip: ClipFormat, margin: float = 0.0) -> NDArray[np.uint8]:
    """Return the aligned portrait of the largest face, uint8 [height, width, 3].

    Raises:
        UsageError: see :func:`find_portrait`.
    """
    return find_portrait(path, clip, margin).picture


def find_portrait(
    path: str | Path,
    clip: ClipFormat,
    margin: float = 0.0,
    *,
    face: Sequence[float] | None = None,
    one_face: bool = False,
    need_face: bool = True,
) -> Portrait:
    """Return the portrait cropped around a face, its aspect kept, and remarks.

    A picture that already has the clip's exact size is taken as aligned.

    Args:
        path: picture file.
        clip: the clips that are made.
        margin: share of the face crop's side that is added all around.
        face: x, y, width, height (pixels) of the face to take; None takes the largest.
        one_face: refuse several faces when ``face`` does not choose one.
        need_face: without it a picture that shows no face is cropped around its middle.

    Raises:
        UsageError: the file cannot be read, the face is too small, or `face` is none of those
            found.
        NoFace: the picture must be cropped and shows no face.
    """
    image = media.read_image(path)
    if image.shape[:2] == (clip.height, clip.width) and face is None:
        return Portrait(image, [])
    try:
        found = faces.every_face(image)
    except faces.NoFace as error:
        if need_face or face is not None:
            raise faces.NoFace(f"{path}: {error.message}", error.hint) from error
        box = middle_box(image.shape[1], image.shape[0], clip)
        return Portrait(_cropped(image, box, clip), ["no face was found: the middle is taken"])
    points, remarks = choose_face(found, face, one_face, path)
    box = portrait_box(points, clip, margin)
    scale = (box[2] - box[0]) / clip.width
    if scale < MIN_SCALE:
        raise UsageError(
            f"{path}: the face is too small: its crop is {box[2] - box[0]:.0f} pixels wide,"
            f" {clip.width * MIN_SCALE:.0f} are needed",
            "give a larger picture or one taken closer",
        )
    if scale < 0.5:
        remarks.append(f"the face crop is enlarged {1 / scale:.1f} times: expect a soft picture")
    return Portrait(_cropped(image, box, clip), remarks)


def choose_face(
    found: Sequence[faces.Landmarks],
    face: Sequence[float] | None,
    one_face: bool,
    path: str | Path,
) -> tuple[faces.Landmarks, list[str]]:
    """Return the landmarks of the face that is meant, and a remark if there were several.

    Raises:
        UsageError: several faces and none chosen under ``one_face``, or ``face`` holds none.
    """
    boxes = [faces.face_box(points) for points in found]
    shown = "; ".join(
        f"face={x0:.0f},{y0:.0f},{x1 - x0:.0f},{y1 - y0:.0f}" for x0, y0, x1, y1 in boxes
    )
    if face is None:
        if len(found) == 1:
            return found[0], []
        if one_face:
            raise UsageError(f"{path} shows {len(found)} faces", f"choose one: {shown}")
        return found[0], [f"{len(found)} faces: the largest is taken; choose another by {shown}"]
    x, y, width, height = face
    for points, box in zip(found, boxes, strict=True):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        if x <= middle[0] <= x + width and y <= middle[1] <= y + height:
            return points, []
    raise UsageError(
        f"{path}: no face has its middle in face={x:g},{y:g},{width:g},{height:g}",
        f"found: {shown}",
    )


def portrait_box(points: faces.Landmarks, clip: ClipFormat, margin: float) -> faces.Box:
    """Return the crop x0, y0, x1, y1 around a face, with the clip's aspect.

    The aligned square grows by the margin; then the shorter direction of the clip keeps it, and
    the longer one is added to: to both sides, or two thirds below the face in a tall clip.
    """
    x0, y0, x1, y1 = faces.aligned_box(points)
    side = (x1 - x0) * (1 + 2 * margin)
    x0, y0 = x0 - margin * (x1 - x0), y0 - margin * (y1 - y0)
    more_width = side * max(clip.width / clip.height - 1, 0)
    more_height = side * max(clip.height / clip.width - 1, 0)
    left, top = x0 - more_width / 2, y0 - more_height / 3
    return left, top, left + side + more_width, top + side + more_height


def middle_box(width: int, height: int, clip: ClipFormat) -> faces.Box:
    """Return the largest box of the clip's aspect in the middle of a picture."""
    scale = min(width / clip.width, height / clip.height)
    left, top = (width - scale * clip.width) / 2, (height - scale * clip.height) / 2
    return left, top, left + scale * clip.width, top + scale * clip.height


def _cropped(image: NDArray[np.uint8], box: faces.Box, clip: ClipFormat) -> NDArray[np.uint8]:
    return faces.crop(image, box, clip.width, clip.height)


def load_sound(path: str | Path, clip: ClipFormat) -> tuple[NDArray[np.float32], list[str]]:
    """Return the sound at the clip's length, float32 [num_samples], and remarks about it.

    Shorter sound is padded with silence, longer sound is cut; both are said.

    Raises:
        UsageError: if the file has no sound or cannot be decoded.
    """
    audio = media.read_audio(path, clip.sample_rate)
    remarks = list(speech.speech_notes(audio, clip.seconds))
    if len(audio) > clip.num_samples:
        whole = len(audio) / clip.sample_rate
        remarks.append(
            f"the audio lasts {whole:.2f} s; the clip takes its first {clip.seconds:.2f} s"
        )
    return media.fit_audio(audio, clip.num_samples), remarks


def read_sound(
    path: str | Path, clip: ClipFormat, max_seconds: float | None = None
) -> tuple[NDArray[np.float32], list[str]]:
    """Return the whole sound, float32 [N] at the clip's rate, and remarks about it.

    Args:
        path: sound or video file.
        clip: the clips that are made.
        max_seconds: keep only so much of it (said in a remark).

    Raises:
        UsageError: the file has no sound, cannot be decoded, or is empty.
    """
    audio = media.read_audio(path, clip.sample_rate)
    whole = len(audio) / clip.sample_rate
    if not len(audio):
        raise UsageError(f"the sound of {path} is empty", "give a file that has sound")
    remarks = []
    if max_seconds is not None and whole > max_seconds:
        remarks.append(f"the audio lasts {whole:.2f} s; max_seconds keeps {max_seconds:.2f} s")
        audio = audio[: round(max_seconds * clip.sample_rate)]
    clipped = int((np.abs(audio) >= CLIPPED).sum())
    if clipped > max(10, len(audio) // 1000):
        remarks.append(f"{clipped} samples are clipped: a cleaner recording gives better lips")
    if not speech.has_speech(audio):
        remarks.append("the audio is silent: the mouth will stay closed")
    return audio, remarks
