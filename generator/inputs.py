"""Checking and loading of what the user gives: a portrait and a sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ft2 import faces, media, speech
from ft2.config import ClipFormat
from ft2.errors import UsageError


def load_portrait(path: str | Path, clip: ClipFormat, margin: float = 0.0) -> NDArray[np.uint8]:
    """Return the aligned portrait, uint8 [height, width, 3].

    A picture that already has the clip's exact size is taken as aligned; any other is cropped
    around its largest face.

    Args:
        path: picture file.
        clip: the clips that are made.
        margin: share of the crop's side that is added all around.

    Raises:
        UsageError: if the file cannot be read.
        NoFace: if the picture must be cropped and shows no face.
    """
    image = media.read_image(path)
    if image.shape[:2] == (clip.height, clip.width):
        return image
    if clip.width != clip.height:
        raise UsageError(
            f"portraits are cropped square, the clip is {clip.width}x{clip.height}",
            "set a square clip, or give a portrait of exactly the clip's size",
        )
    try:
        return faces.align(image, clip.width, margin)
    except faces.NoFace as error:
        raise faces.NoFace(f"{path}: {error}", error.hint) from error


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
