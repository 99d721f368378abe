"""What the judge sees and hears of a clip: a face above its enlarged mouth, and mel frames."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.qwen.spec import QwenSpec, StreamSpec

if TYPE_CHECKING:
    from ft2.faces import Box

AT_ONCE = 512e6
"""Bytes of pictures, 8 bits a channel, up to which a file is decoded as a whole."""

Frames = npt.NDArray[np.uint8]
Audio = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ClipView:
    """One window of a clip, ready for the processor."""

    streams: tuple[Frames, ...]
    """Frames of each stream, uint8 [T, H, W, 3] with T even; one composite of `view.height` x
    `view.face_size` where the spec has no streams."""
    audio: Audio
    """Sound of the window, float32 [clip.num_samples] in [-1, 1]."""

    @property
    def pixels(self) -> Frames:
        """The first stream."""
        return self.streams[0]


@lru_cache(maxsize=16)
def _resize_matrix(size: int, start: float, stop: float, out: int) -> npt.NDArray[np.float32]:
    """Return the [out, size] matrix that samples [start, stop) of a line of pixels bilinearly.

    Output pixel i looks at the centre of its share of the interval, as in half-pixel bilinear
    resizing; when the interval shrinks by more than one, the hat is widened to stay area-true.
    """
    step = (stop - start) / out
    centres = start + (np.arange(out) + 0.5) * step - 0.5
    width = max(step, 1.0)
    distance = np.abs(np.arange(size)[None, :] - np.clip(centres, 0, size - 1)[:, None])
    weights = np.clip(1.0 - distance / width, 0.0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def view_matrices(spec: QwenSpec, height: int, width: int) -> tuple[npt.NDArray[np.float32], ...]:
    """Return the resize matrices (face rows, face columns, mouth rows, mouth columns).

    Args:
        spec: The view's sizes.
        height: Pixels of the aligned face's height.
        width: Pixels of the aligned face's width.
    """
    from ft2.faces import MOUTH_BOX

    x0, y0, x1, y1 = MOUTH_BOX
    view = spec.view
    return (
        _resize_matrix(height, 0.0, height, view.face_size),
        _resize_matrix(width, 0.0, width, view.face_size),
        _resize_matrix(height, y0 * height, y1 * height, view.mouth_height),
        _resize_matrix(width, x0 * width, x1 * width, view.face_size),
    )


def composite(frames: Frames, spec: QwenSpec) -> Frames:
    """Return face and mouth one above the other, an odd number of frames padded by the last.

    Args:
        frames: Aligned face crops, uint8 [F, H, W, 3].
        spec: The view's sizes.

    Returns:
        uint8 [T, view.height, view.face_size, 3] with T = F rounded up to even.
    """
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    rows, columns, mouth_rows, mouth_columns = view_matrices(spec, *frames.shape[1:3])
    x = frames.astype(np.float32)
    face = np.einsum("yh,fhwc,xw->fyxc", rows, x, columns, optimize=True)
    mouth = np.einsum("yh,fhwc,xw->fyxc", mouth_rows, x, mouth_columns, optimize=True)
    stacked = np.concatenate([face, mouth], axis=1)
    return np.clip(np.rint(stacked), 0, 255).astype(np.uint8)


def stream_frames(frames: Frames, stream: StreamSpec) -> Frames:
    """Return what a stream shows, an odd number of frames padded by the last.

    Args:
        frames: Aligned face crops, or whole pictures if it shows those, uint8 [F, H, W, 3].
        stream: Which part, how large, how often.

    Returns:
        uint8 [T, stream.height, stream.width, 3].
    """
    from ft2.faces import MOUTH_BOX

    frames = frames[:: stream.every]
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    height, width = frames.shape[1:3]
    x0, y0, x1, y1 = MOUTH_BOX if stream.crop == "mouth" else (0.0, 0.0, 1.0, 1.0)
    rows = _resize_matrix(height, y0 * height, y1 * height, stream.height)
    columns = _resize_matrix(width, x0 * width, x1 * width, stream.width)
    return _sampled(frames, rows, columns)


def _sampled(
    frames: Frames, rows: npt.NDArray[np.float32], columns: npt.NDArray[np.float32]
) -> Frames:
    shown = np.einsum("yh,fhwc,xw->fyxc", rows, frames.astype(np.float32), columns, optimize=True)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def whole_frames(frames: Frames, spec: QwenSpec) -> Frames | None:
    """Return whole pictures [F, H, W, 3] in the size of the largest stream that shows them.

    None if no stream does.
    """
    sizes = [(stream.height, stream.width) for stream in spec.streams if stream.crop == "frame"]
    if not sizes:
        return None
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    rows = _resize_matrix(frames.shape[1], 0.0, frames.shape[1], height)
    columns = _resize_matrix(frames.shape[2], 0.0, frames.shape[2], width)
    return np.concatenate([_sampled(frame[None], rows, columns) for frame in frames])


def make_view(
    frames: Frames, audio: Audio, spec: QwenSpec, whole: Frames | None = None
) -> ClipView:
    """Return the view of one aligned clip in the spec's format.

    Args:
        frames: uint8 [clip.num_frames, H, W, 3], an aligned face.
        audio: float32 [clip.num_samples] in [-1, 1].
        spec: Sizes.
        whole: The same pictures uncropped (`whole_frames`); None takes the aligned ones for them.

    Raises:
        UsageError: The number of frames or samples is not the clip format's.
    """
    clip = spec.clip
    if len(frames) != clip.num_frames or len(audio) != clip.num_samples:
        raise UsageError(
            f"a window has {len(frames)} frames and {len(audio)} samples, the critic takes "
            f"{clip.num_frames} and {clip.num_samples}",
            "cut the clip to the critic's format first",
        )
    uncropped = frames if whole is None else whole
    streams = tuple(
        stream_frames(uncropped if stream.crop == "frame" else frames, stream)
        for stream in spec.streams
    )
    return ClipView(
        streams or (composite(frames, spec),), np.ascontiguousarray(audio, dtype=np.float32)
    )


def read_views(path: Path, spec: QwenSpec, max_windows: int = 3) -> list[ClipView]:
    """Return the views of a video file: one, or up to `max_windows` spread over a longer one.

    A file in the clip format is taken as it is. Any other is resampled in time, its face found
    and aligned as ft2 aligns portraits. Of a file whose pictures would take more than `AT_ONCE`
    bytes only those of the windows are kept, at the price of decoding it twice.

    Raises:
        UsageError: Unreadable, no sound, no face, or shorter than the clip format.
    """
    clip = spec.clip
    if _picture_bytes(path) > AT_ONCE:
        return _read_large(path, spec, max_windows)
    from ft2.media import read_video

    video = read_video(path, sample_rate=clip.sample_rate, need_audio=True)
    frames, audio = video.frames, video.audio
    if audio is None:
        raise UsageError(f"{path} has no sound", "the critic judges lips against the voice")
    frames = frames[_places(len(frames), video.fps, clip.fps)]
    whole = whole_frames(frames, spec)
    if frames.shape[1:3] != (clip.height, clip.width):
        frames = _align_clip(frames, clip, path)
    starts = _window_starts(_long_enough(len(frames), clip, path), clip.num_frames, max_windows)
    views = []
    for start in starts:
        part = slice(start, start + clip.num_frames)
        sound = _cut(audio, start / clip.fps, clip)
        views.append(make_view(frames[part], sound, spec, None if whole is None else whole[part]))
    return views


def _picture_bytes(path: Path) -> float:
    """Return how much memory all pictures of a file would take, as far as its header tells."""
    from ft2.media.files import opened

    with opened(path) as container:
        if not container.streams.video:
            return 0.0
        stream = container.streams.video[0]
        seconds = (container.duration or 0) / 1e6
        count = stream.frames or seconds * float(stream.average_rate or 0)
        return float(3 * stream.width * stream.height * count)


def _read_large(path: Path, spec: QwenSpec, max_windows: int) -> list[ClipView]:
    """Return the views of a file, keeping only the pictures of the windows, aligned."""
    from ft2.media import even_places, fit_audio, frame_times, read_audio, read_frames

    clip = spec.clip
    times, fps = frame_times(path)
    even = even_places(times, fps)
    seconds = len(even) / fps
    places = even[_places(len(even), fps, clip.fps)]
    starts = _window_starts(_long_enough(len(places), clip, path), clip.num_frames, max_windows)
    windows = [places[start : start + clip.num_frames].tolist() for start in starts]
    sound = read_audio(path, clip.sample_rate)
    audio = fit_audio(sound, round(seconds * clip.sample_rate))
    wanted, box, kept = {number for window in windows for number in window}, None, {}
    whole: dict[int, Frames | None] = {}
    for number, picture in read_frames(path, wanted):
        whole[number] = whole_frames(picture[None], spec)
        if picture.shape[:2] != (clip.height, clip.width):
            box = box or _face_box(picture, path)  # the first window begins with the first frame
            picture = _crop(picture, box, clip)
        kept[number] = picture
    views = []
    for start, window in zip(starts, windows, strict=True):
        shown = [part for n in window if (part := whole[n]) is not None]
        sound = _cut(audio, start / clip.fps, clip)
        uncropped = np.concatenate(shown) if shown else None
        views.append(make_view(np.stack([kept[n] for n in window]), sound, spec, uncropped))
    return views


def _long_enough(count: int, clip: ClipFormat, path: Path) -> int:
    if count < clip.num_frames:
        raise UsageError(
            f"{path} lasts {count / clip.fps:.2f} s, the critic needs {clip.seconds:.2f} s",
            "give a longer clip",
        )
    return count


def _window_starts(total: int, length: int, max_windows: int) -> list[int]:
    count = min(max_windows, max(1, total // length))
    return sorted({round(i * (total - length) / max(count - 1, 1)) for i in range(count)})


def _cut(audio: Audio, start_seconds: float, clip: ClipFormat) -> Audio:
    """Return `clip.num_samples` from a start, padded with silence where the sound ends."""
    first = round(start_seconds * clip.sample_rate)
    part = audio[first : first + clip.num_samples]
    return np.pad(part, (0, clip.num_samples - len(part)))


def _places(count: int, fps: float, target: float) -> "slice | npt.NDArray[np.int64]":
    """Return which of `count` frames lie nearest in time to a grid of `target` a second."""
    if abs(fps - target) < 0.01:
        return slice(None)
    times = np.arange(max(1, round(count * target / fps))) / target
    return np.minimum(np.rint(times * fps).astype(int), count - 1)


def _align_clip(frames: Frames, clip: ClipFormat, path: Path) -> Frames:
    """Crop every frame by the aligned box of the first, so that head motion stays in the clip."""
    box = _face_box(frames[0], path)
    return np.stack([_crop(frame, box, clip) for frame in frames])


def _face_box(picture: Frames, path: Path) -> "Box":
    from ft2.faces import aligned_box, landmarks

    try:
        return aligned_box(landmarks(picture))
    except UsageError as error:
        raise UsageError(f"{path}: no face in the first frame", error.hint) from error


def _crop(picture: Frames, box: "Box", clip: ClipFormat) -> Frames:
    from ft2.faces import crop

    return crop(picture, box, clip.width)
