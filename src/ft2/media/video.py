"""Video: decoding with sound aligned to the first frame, and mp4 writing."""

from __future__ import annotations

import io
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.media.files import opened, unreadable
from ft2.media.pictures import Frames
from ft2.media.sound import Audio, fit_audio, read_audio
from ft2.runs import write_atomic

if TYPE_CHECKING:
    from ft2.config import ClipFormat

_LAYOUTS = {1: "mono", 2: "stereo"}
_REPEATABLE = {"x264-params": "mbtree=0"}
"""x264's macroblock tree reads memory it never wrote when a picture is a few macroblocks wide, so
the same 64-pixel clip came out in a dozen versions; without it every run writes the same bytes."""


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
    with opened(path) as container:
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


def write_video(
    path: str | Path,
    frames: Frames,
    fps: float | Fraction,
    audio: Audio | None = None,
    sample_rate: int = 16000,
    crf: int = 10,
    metadata: Mapping[str, str] | None = None,
    copied: str | Path | None = None,
) -> None:
    """Write frames (and sound) as mp4, h264 yuv420p and AAC, complete or not at all.

    Args:
        path: Destination; missing folders are made.
        frames: uint8 [F, H, W, 3] RGB, H and W even.
        fps: Frames per second; 12.5 becomes 25/2.
        audio: float32 [N] (mono) or [1 or 2, N] in [-1, 1], fitted to the length of the picture, or
            None.
        sample_rate: Rate of `audio` in Hz.
        crf: Quality of x264, 0 (best) to 51.
        metadata: Text tags stored in the file.
        copied: File whose AAC sound is taken over packet by packet instead of `audio`; see
            `copyable_sound`.

    Raises:
        UsageError: Odd sizes, no frames, or another type or shape.
    """
    write_atomic(Path(path), encode_mp4(frames, fps, audio, sample_rate, crf, metadata, copied))


def encode_mp4(
    frames: Frames,
    fps: float | Fraction,
    audio: Audio | None = None,
    sample_rate: int = 16000,
    crf: int = 10,
    metadata: Mapping[str, str] | None = None,
    copied: str | Path | None = None,
) -> bytes:
    """Return the bytes of the mp4 that `write_video` writes."""
    _check_frames(frames)
    rate = Fraction(fps).limit_denominator(1001)
    buffer = io.BytesIO()
    options = {"movflags": "+use_metadata_tags", "fflags": "+bitexact"}
    with av.open(buffer, "w", format="mp4", options=options) as container:
        container.metadata.update(metadata or {})
        picture = container.add_stream(
            "libx264", rate=rate, options={"crf": str(crf), **_REPEATABLE}
        )
        picture.width, picture.height = frames.shape[2], frames.shape[1]
        picture.pix_fmt = "yuv420p"
        picture.codec_context.thread_count = 1
        sound = target = None
        if copied is not None:
            with opened(copied) as source:
                target = container.add_stream_from_template(source.streams.audio[0])
        if audio is not None:
            audio = np.atleast_2d(audio)
            sound = container.add_stream("aac", rate=sample_rate, layout=_LAYOUTS[len(audio)])
            sound.bit_rate = len(audio) * min(128_000, sample_rate * 6)
        for index, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            shown.pts, shown.time_base = index, 1 / rate
            container.mux(picture.encode(shown))
        container.mux(picture.encode(None))
        if sound is not None and audio is not None:
            fitted = fit_audio(audio, round(len(frames) / rate * sample_rate))
            container.mux(sound.encode(_audio_frame(fitted, sample_rate)))
            container.mux(sound.encode(None))
        if target is not None and copied is not None:
            _copy_packets(container, target, copied)
    return buffer.getvalue()


def _decode_frames(container: Any, stream: Any, path: str | Path) -> tuple[Frames, float]:
    pictures: list[Frames] = []
    times: list[float] = []
    for time, picture in _decoded(container, stream, path, range(sys.maxsize)):
        pictures.append(picture)
        times.append(time)
    fps = _check_times(stream, times, path)
    frames, places = np.stack(pictures), even_places(np.array(times), fps)
    return (frames if len(places) == len(frames) and _rising(places) else frames[places]), fps


def _rising(places: NDArray[np.int64]) -> bool:
    return bool((places == np.arange(len(places))).all())


def frame_times(path: str | Path) -> tuple[NDArray[np.float64], float]:
    """Return the time of each frame of a video in seconds, and its rate; keeps no picture.

    Raises:
        UsageError: As `read_video`.
    """
    with opened(path) as container:
        stream = container.streams.video[0]
        times = [time for time, _ in _decoded(container, stream, path, ())]
        fps = _check_times(stream, times, path)
    return np.array(times), fps


def read_frames(path: str | Path, wanted: Container[int]) -> Iterator[tuple[int, Frames]]:
    """Yield (number, uint8 [H, W, 3]) of some frames of a video, in their order."""
    with opened(path) as container:
        found = _decoded(container, container.streams.video[0], path, wanted)
        for number, (_, picture) in enumerate(found):
            if number in wanted:
                yield number, picture


def _decoded(
    container: Any, stream: Any, path: str | Path, wanted: Container[int]
) -> Iterator[tuple[float, Any]]:
    """Yield the time of each frame and its picture; None for those that are not wanted."""
    stream.thread_type = "SLICE"
    try:
        for number, frame in enumerate(container.decode(stream)):
            yield float(frame.time or 0.0), _picture(frame) if number in wanted else None
    except (FFmpegError, ValueError) as error:
        raise unreadable(path, error) from error


def _picture(frame: Any) -> Frames:
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round((frame.rotation or 0) / 90))
    return np.ascontiguousarray(turned)


def _check_times(stream: Any, times: list[float], path: str | Path) -> float:
    """Return the rate of a decoded stream, refused where it is empty or cut off."""
    if not times or not stream.average_rate:
        raise unreadable(path, ValueError("no frame could be decoded"))
    fps = float(stream.average_rate)
    if stream.duration:
        begin = float((stream.start_time or 0) * stream.time_base)
        missing = float(stream.duration * stream.time_base) - (times[-1] - begin + 1 / fps)
        if missing > 1.5 / fps:
            raise unreadable(path, ValueError(f"the last {missing:.2f} s are missing"))
    return fps


def even_places(times: NDArray[np.float64], fps: float) -> NDArray[np.int64]:
    """Return numbers of frames at a constant rate: of a variable-rate file the nearest in time.

    A file whose frames lie within a frame of their even places is taken as it is.
    """
    places = times - times[0]
    if np.abs(places - np.arange(len(places)) / fps).max() <= 1 / fps:
        return np.arange(len(places))
    grid = np.arange(round(places[-1] * fps) + 1) / fps
    return np.abs(places[None, :] - grid[:, None]).argmin(1)


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
    planar = np.ascontiguousarray(audio, np.float32)
    frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout=_LAYOUTS[len(audio)])
    frame.sample_rate = sample_rate
    frame.pts, frame.time_base = 0, Fraction(1, sample_rate)
    return frame


def _copy_packets(container: Any, target: Any, path: str | Path) -> None:
    """Add the packets of a file's sound, with their times, to a stream made for them."""
    with opened(path) as source:
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = target
                container.mux(packet)
