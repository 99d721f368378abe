"""What is measured on a clip before a critic sees it, and which clips are dropped for it."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.faces import face_confidences
from ft2.media import read_clip
from ft2.nsq.config import FilterConfig
from ft2.speech import has_speech

HASH_BITS = 256
_SIDE = 16
_SCALE = 4
_HASHED_FRAMES = 3


@dataclass(frozen=True)
class Facts:
    """What was found in one file."""

    sha256: str = ""
    num_bytes: int = 0
    phash: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Perceptual hash of some frames, 256 bits each."""
    dropped: str | None = None
    """The filter that drops the clip, None if it stays."""
    detail: str | None = None
    """What that filter saw."""


@dataclass(frozen=True)
class Inspect:
    """The stage before scoring: a batch of files in, their facts out. Runs in any process."""

    clip: ClipFormat
    filters: FilterConfig

    def __call__(self, paths: list[Path]) -> list[Facts]:
        """Return the facts of each file; a file that cannot be read is one, not an exception."""
        return [inspect(path, self.clip, self.filters) for path in paths]


def inspect(path: Path, clip: ClipFormat, filters: FilterConfig) -> Facts:
    """Return what is in a file, and whether a filter drops it.

    The filters in order: `missing`, `format` (does not decode, or size, frames or rate differ),
    `silent`, `no-speech`, `face`. Near-duplicates need their neighbours: see `near_duplicates`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return Facts(dropped="missing", detail=error.strerror)
    digest = hashlib.sha256(data).hexdigest()
    try:
        video = read_clip(path, clip)
    except UsageError as error:
        saw = error.message.replace(str(path), path.name)
        return Facts(digest, len(data), dropped="format", detail=saw)
    assert video.audio is not None
    picks = np.linspace(0, len(video.frames) - 1, _HASHED_FRAMES).round().astype(int)
    phash = np.concatenate([perceptual_hash(video.frames[i]) for i in picks])
    dropped: str | None = None
    detail: str | None = None
    level = 10 * np.log10(float(np.mean(np.square(video.audio, dtype=np.float64))) + 1e-12)
    if filters.min_sound_db is not None and level < filters.min_sound_db:
        dropped, detail = "silent", f"{level:.1f} dBFS"
    elif filters.need_speech and not has_speech(video.audio):
        dropped, detail = "no-speech", f"{level:.1f} dBFS"
    elif filters.min_face_confidence is not None:
        step = max(1, len(video.frames) // filters.face_frames)
        detail = _face_problem(video.frames[::step][: filters.face_frames], filters)
        dropped = "face" if detail else None
    return Facts(digest, len(data), phash, dropped, detail)


def _face_problem(frames: NDArray[np.uint8], filters: FilterConfig) -> str | None:
    """Return what is wrong with the faces of some frames, None if each shows one, and clearly."""
    assert filters.min_face_confidence is not None
    for frame in frames:
        found = face_confidences(frame)
        best = max(found, default=0.0)
        if best < filters.min_face_confidence:
            return f"best face confidence {best:.2f}"
        if len(found) > 1:
            return f"{len(found)} faces"
    return None


def perceptual_hash(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return 256 bits of a picture uint8 [H, W, 3] that survive scaling and compression.

    The lowest 16 x 16 coefficients of the cosine transform of 64 x 64 grey levels, each compared
    with their median (Zauner 2010, "Implementation and benchmarking of perceptual image hash
    functions", section 3.1, with 16 x 16 for 8 x 8).
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    side = _SIDE * _SCALE
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(cv2.dct(small))[:_SIDE, :_SIDE]
    return np.asarray(low > np.median(low)).reshape(-1)


def near_duplicates(facts: list[Facts], max_bits: int | None) -> list[int | None]:
    """Return, for the clips of one condition, the earlier clip that each repeats, or None.

    Equal files always repeat each other; others do when their hashes differ by at most `max_bits`
    in the mean frame. Dropped clips are nobody's original.
    """
    found: list[int | None] = []
    for index, fact in enumerate(facts):
        twin = None
        for earlier in range(index):
            other = facts[earlier]
            if other.dropped or fact.dropped or found[earlier] is not None:
                continue
            frames = max(1, len(fact.phash) // HASH_BITS)
            distance = int((fact.phash != other.phash).sum()) / frames
            if fact.sha256 == other.sha256 or (max_bits is not None and distance <= max_bits):
                twin = earlier
                break
        found.append(twin)
    return found
