"""Pictures: reading any common format upright, PNG, and contact sheets."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from ft2.errors import UsageError
from ft2.media.files import require_file
from ft2.runs import write_atomic

Frames = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded."""


def read_image(path: str | Path) -> Frames:
    """Read a picture as uint8 [H, W, 3] RGB, upright.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bit,
    colours with an ICC profile (CMYK too) become sRGB; of an animation the first frame is taken.

    Raises:
        UsageError: The file is missing or not a readable picture.
    """
    require_file(path)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
            _refuse_huge(path, opened.size)
            picture = _in_srgb(ImageOps.exif_transpose(opened))
            picture.load()
    except (
        OSError, SyntaxError, ValueError, TypeError, struct.error, ZeroDivisionError,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise UsageError(
            f"cannot read {path} as a picture ({error})",
            "give a whole JPEG, PNG or WebP file (convert HEIC first)",
        ) from error
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.float64) / 257.0
        picture = Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _refuse_huge(path: str | Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UsageError(
            f"{path} is {size[0]}x{size[1]} pixels, more than {MAX_PIXELS // 10**6} million",
            "scale it down, or crop it around the face",
        )


def _in_srgb(picture: Image.Image) -> Image.Image:
    """Convert 8-bit colours by the embedded ICC profile; a damaged profile is ignored."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in {"RGB", "RGBA", "CMYK"}:
        return picture
    mode = "RGBA" if picture.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        found = ImageCms.profileToProfile(
            picture, source, ImageCms.createProfile("sRGB"), outputMode=mode
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture
    return found or picture


def write_png(path: str | Path, image: Frames) -> None:
    """Write uint8 [H, W, 3] RGB (or [H, W] grey) as PNG, complete or not at all."""
    write_atomic(Path(path), encode_png(image))


def encode_png(image: Frames) -> bytes:
    """Return uint8 [H, W, 3] RGB (or [H, W] grey) as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def contact_sheet(
    clips: Sequence[Frames],
    labels: Sequence[str] = (),
    columns: int = 11,
    size: int = 96,
) -> Frames:
    """Return one picture with a row of evenly spaced frames for each clip.

    Args:
        clips: Clips, each uint8 [F, H, W, 3]; lengths and sizes may differ.
        labels: One text for each clip, written above its row, or none.
        columns: Most frames shown of a clip.
        size: Side of one tile in pixels.
    """
    rows = []
    for number, frames in enumerate(clips):
        shown = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
        tiles = [cv2.resize(frames[i], (size, size), interpolation=cv2.INTER_AREA) for i in shown]
        tiles += [np.full((size, size, 3), 255, np.uint8)] * (columns - len(tiles))
        row = np.concatenate(tiles, axis=1)
        if number < len(labels):
            strip = np.full((16, row.shape[1], 3), 255, np.uint8)
            place = (2, 12)
            cv2.putText(strip, labels[number], place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0))
            row = np.concatenate([strip, row])
        rows.append(row)
    return np.concatenate(rows).astype(np.uint8)
