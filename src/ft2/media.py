"""Video, sound and pictures in and out.

One path for every file: PyAV (the libraries of FFmpeg) reads and writes both pictures and sound.
Its pixels are those of decord and torchcodec, and it is the only one of the three that also
writes, reports the time stamps that keep sound and picture together, and opens a silent video
without an error. Everything here is deterministic: the encoder runs on one thread and no clock
time is stored, so the same frames give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np
import soundfile
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.signal import resample_poly

from ft2.errors import UsageError
from ft2.runs import write_atomic

if TYPE_CHECKING:
    from ft2.config import ClipFormat

Frames = NDArray[np.uint8]
Audio = NDArray[np.float32]

_JITTER_SECONDS = 0.02
"""Time stamps of containers with coarse clocks jump by less than this; larger jumps are gaps."""


@dataclass(frozen=True)
class Video:
    """A decoded clip.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB.
        fps: Frames per second (the average rate of the file).
        audio: float32 [N] in [-1, 1], mono, N = round(F / fps * sample_rate), sample 0 at the
            time of frame 0; None when the file has no sound.
        sample_rate: Samples per second of `audio`.
    """

    frames: Frames
    fps: float
    audio: Audio | None
    sample_rate: int


def read_video(path: str | Path, sample_rate: int = 16000, need_audio: bool = False) -> Video:
    """Decode a whole video file, sound aligned to the first frame.

    Args:
        path: Any file FFmpeg reads.
        sample_rate: Rate the sound is resampled to, in Hz.
        need_audio: Refuse a file without sound.

    Raises:
        UsageError: The file is missing, not a video, cut off, or has no sound but needs it.
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise UsageError(f"no picture in {path}", "give a video file such as an mp4")
        stream = container.streams.video[0]
        if need_audio and not container.streams.audio:
            raise UsageError(f"no sound in {path}", "give a video that has an audio track")
        frames, fps = _decode_frames(container, stream, path)
        has_audio = bool(container.streams.audio)
    audio = None
    if has_audio:
        audio = fit_audio(read_audio(path, sample_rate), round(len(frames) / fps * sample_rate))
    return Video(frames, fps, audio, sample_rate)


def read_audio(path: str | Path, sample_rate: int = 16000) -> Audio:
    """Decode the sound of an audio or video file to mono float32 [N] in [-1, 1].

    Samples are placed by their time stamps, so encoder priming (AAC, MP3, Opus) is removed and
    gaps become silence. In a video file sample 0 is the time of the first frame.

    Raises:
        UsageError: The file is missing, unreadable or has no sound.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            raise UsageError(f"no sound in {path}", "give a file that has an audio track")
        stream = container.streams.audio[0]
        origin: float | None = None
        if container.streams.video:
            video = container.streams.video[0]
            if video.start_time is not None and video.time_base is not None:
                origin = float(video.start_time * video.time_base)
        try:
            pieces, rate = _decode_samples(container, stream, origin)
        except (FFmpegError, ValueError) as error:
            raise _unreadable(path, error) from error
    if not pieces:
        raise UsageError(f"the audio track of {path} is empty", "give a file that has sound")
    length = max(start + len(samples) for start, samples in pieces)
    mono = np.zeros(max(length, 0), np.float32)
    for start, samples in pieces:
        kept = samples[max(0, -start) :]
        mono[max(0, start) : max(0, start) + len(kept)] = kept
    return resample(mono, rate, sample_rate)


def resample(audio: Audio, rate: int, target: int) -> Audio:
    """Change the rate of `audio` [N] by a zero-phase polyphase filter (no delay)."""
    if rate == target:
        return np.ascontiguousarray(audio, np.float32)
    common = math.gcd(rate, target)
    return np.asarray(resample_poly(audio, target // common, rate // common), np.float32)


def fit_audio(audio: Audio, num_samples: int) -> Audio:
    """Return exactly `num_samples` samples: cut at the end, or padded with silence."""
    audio = np.asarray(audio, np.float32)[:num_samples]
    return np.pad(audio, (0, num_samples - len(audio)))


def read_clip(path: str | Path, clip: ClipFormat) -> Video:
    """Read a video that must have exactly the format `clip`, with sound.

    Raises:
        UsageError: Size, number of frames or rate differ, or there is no sound.
    """
    video = read_video(path, clip.sample_rate, need_audio=True)
    num_frames, height, width = video.frames.shape[:3]
    found = (width, height, num_frames, round(video.fps, 3))
    wanted = (clip.width, clip.height, clip.num_frames, round(float(clip.fps), 3))
    if found != wanted:
        raise UsageError(
            "{} is {}x{}, {} frames at {} fps".format(path, *found),
            "the clip format is {}x{}, {} frames at {} fps".format(*wanted),
        )
    assert video.audio is not None
    return Video(
        video.frames,
        video.fps,
        fit_audio(video.audio, clip.num_samples),
        clip.sample_rate,
    )


def read_image(path: str | Path) -> Frames:
    """Read a picture as uint8 [H, W, 3] RGB, upright.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bit.

    Raises:
        UsageError: The file is missing or not a readable picture.
    """
    _require_file(path)
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"cannot read {path} as a picture ({error})",
            "give a whole JPEG, PNG or WebP file",
        ) from error
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.float64) / 257.0
        picture = Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def write_video(
    path: str | Path,
    frames: Frames,
    fps: float | Fraction,
    audio: Audio | None = None,
    sample_rate: int = 16000,
    crf: int = 10,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames (and sound) as mp4, h264 yuv420p and AAC, complete or not at all.

    Args:
        path: Destination; missing folders are made.
        frames: uint8 [F, H, W, 3] RGB, H and W even.
        fps: Frames per second; 12.5 becomes 25/2.
        audio: float32 [N] in [-1, 1] mono, fitted to the length of the picture, or None.
        sample_rate: Rate of `audio` in Hz.
        crf: Quality of x264, 0 (best) to 51.
        metadata: Text tags stored in the file.

    Raises:
        UsageError: Odd sizes, no frames, or another type or shape.
    """
    write_atomic(Path(path), encode_mp4(frames, fps, audio, sample_rate, crf, metadata))


def encode_mp4(
    frames: Frames,
    fps: float | Fraction,
    audio: Audio | None = None,
    sample_rate: int = 16000,
    crf: int = 10,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of the mp4 that `write_video` writes."""
    _check_frames(frames)
    rate = Fraction(fps).limit_denominator(1001)
    buffer = io.BytesIO()
    options = {"movflags": "+use_metadata_tags", "fflags": "+bitexact"}
    with av.open(buffer, "w", format="mp4", options=options) as container:
        container.metadata.update(metadata or {})
        picture = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        picture.width, picture.height = frames.shape[2], frames.shape[1]
        picture.pix_fmt = "yuv420p"
        picture.codec_context.thread_count = 1
        sound = None
        if audio is not None:
            sound = container.add_stream("aac", rate=sample_rate, layout="mono")
            sound.bit_rate = min(128_000, sample_rate * 6)
        for index, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            shown.pts, shown.time_base = index, 1 / rate
            container.mux(picture.encode(shown))
        container.mux(picture.encode(None))
        if sound is not None and audio is not None:
            fitted = fit_audio(audio, round(len(frames) / rate * sample_rate))
            container.mux(sound.encode(_audio_frame(fitted, sample_rate)))
            container.mux(sound.encode(None))
    return buffer.getvalue()


def write_wav(path: str | Path, audio: Audio, sample_rate: int = 16000) -> None:
    """Write mono float32 [N] in [-1, 1] as a 16-bit WAV, complete or not at all."""
    write_atomic(Path(path), _encode_sound(audio, sample_rate, "WAV"))


def write_png(path: str | Path, image: Frames) -> None:
    """Write uint8 [H, W, 3] RGB (or [H, W] grey) as PNG, complete or not at all."""
    write_atomic(Path(path), encode_png(image))


def encode_png(image: Frames) -> bytes:
    """Return uint8 [H, W, 3] RGB (or [H, W] grey) as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encode_flac(audio: Audio, sample_rate: int = 16000) -> bytes:
    """Return mono float32 [N] in [-1, 1] as the bytes of a 16-bit FLAC."""
    return _encode_sound(audio, sample_rate, "FLAC")


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


def _require_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise UsageError(f"no such file: {path}", "check the path")


def _unreadable(path: str | Path, error: Exception) -> UsageError:
    return UsageError(
        f"cannot decode {path} ({error})",
        "the file is damaged, cut off or not audio or video",
    )


def _opened(path: str | Path) -> Any:  # noqa: ANN401  (av's container type is private)
    _require_file(path)
    try:
        return av.open(str(path))
    except (FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error


def _decode_frames(container: Any, stream: Any, path: str | Path) -> tuple[Frames, float]:  # noqa: ANN401
    stream.thread_type = "SLICE"
    pictures: list[Frames] = []
    end = 0.0
    try:
        for frame in container.decode(stream):
            turned = np.rot90(frame.to_ndarray(format="rgb24"), round((frame.rotation or 0) / 90))
            pictures.append(np.ascontiguousarray(turned))
            end = float(frame.time or 0.0)
    except (FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not pictures or not stream.average_rate:
        raise _unreadable(path, ValueError("no frame could be decoded"))
    fps = float(stream.average_rate)
    if stream.duration:
        begin = float((stream.start_time or 0) * stream.time_base)
        missing = float(stream.duration * stream.time_base) - (end - begin + 1 / fps)
        if missing > 1.5 / fps:
            raise _unreadable(path, ValueError(f"the last {missing:.2f} s are missing"))
    return np.stack(pictures), fps


def _decode_samples(
    container: Any,  # noqa: ANN401
    stream: Any,  # noqa: ANN401
    origin: float | None,
) -> tuple[list[tuple[int, Audio]], int]:
    """Return (position, mono samples) pieces relative to `origin`, and their rate."""
    rate = int(stream.rate)
    to_float = av.AudioResampler(format="fltp", rate=rate)
    pieces: list[tuple[int, Audio]] = []
    cursor: int | None = None
    for decoded in container.decode(stream):
        time = decoded.time
        for frame in to_float.resample(decoded):
            samples = frame.to_ndarray().mean(axis=0, dtype=np.float64).astype(np.float32)
            if origin is None:
                origin = float(time or 0.0)
            start = round(((time or 0.0) - origin) * rate) if time is not None else cursor
            if cursor is not None and (
                start is None or abs(start - cursor) < _JITTER_SECONDS * rate
            ):
                start = cursor
            pieces.append((start or 0, samples))
            cursor = (start or 0) + len(samples)
    return pieces, rate


def _check_frames(frames: Frames) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise UsageError(
            f"frames are {frames.dtype} {list(frames.shape)}",
            "give uint8 [F, H, W, 3], F >= 1",
        )
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise UsageError(
            f"frames are {frames.shape[2]}x{frames.shape[1]}",
            "h264 needs even width and height",
        )


def _audio_frame(audio: Audio, sample_rate: int) -> av.AudioFrame:
    planar = np.ascontiguousarray(audio[None], np.float32)
    frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout="mono")
    frame.sample_rate = sample_rate
    frame.pts, frame.time_base = 0, Fraction(1, sample_rate)
    return frame


def _encode_sound(audio: Audio, sample_rate: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(audio), sample_rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()
