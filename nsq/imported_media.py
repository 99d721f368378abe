"""Media of an imported collection: each video looked at once, sounds and portraits where given."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ft2.media import encode_flac, encode_png, read_audio, read_image, read_video
from ft2.nsq.tables import Media

RATE = 16000
"""Samples per second of every sound."""


@dataclass(frozen=True)
class Clip:
    """One video of the collection."""

    path: Path
    clip_id: str
    shape: tuple[int, int, int]
    fps: float
    num_bytes: int


@lru_cache(maxsize=1 << 20)
def look(path: Path) -> Clip:
    """Decode a clip once.

    Raises:
        UsageError: it is missing, broken or has no sound.
    """
    video = read_video(path, RATE, need_audio=True)
    data = path.read_bytes()
    frames, height, width = video.frames.shape[:3]
    digest = hashlib.sha256(data).hexdigest()
    return Clip(path, digest, (frames, height, width), video.fps, len(data))


def media() -> Media:
    """Return readers of absolute paths."""
    return Media(lambda path: Path(path).read_bytes(), sound_bytes, portrait_bytes)


@lru_cache(maxsize=64)
def sound_bytes(path: str) -> bytes:
    """Return FLAC; a FLAC file as it is."""
    if path.endswith(".flac"):
        return Path(path).read_bytes()
    return encode_flac(read_audio(path, RATE), RATE)


@lru_cache(maxsize=64)
def portrait_bytes(path: str) -> bytes:
    """Return PNG; a PNG file as it is, of a video the first frame."""
    if path.endswith(".png"):
        return Path(path).read_bytes()
    if path.endswith((".jpg", ".jpeg", ".webp")):
        return encode_png(read_image(path))
    return encode_png(read_video(path).frames[0])


def short_hash(data: bytes) -> str:
    """Return 16 hex digits of the sha256."""
    return hashlib.sha256(data).hexdigest()[:16]
