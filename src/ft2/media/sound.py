"""Sound: decoding by time stamps, resampling, fitting, WAV and FLAC."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from av.error import FFmpegError
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ft2.errors import UsageError
from ft2.media.files import opened, unreadable
from ft2.runs import write_atomic

Audio = NDArray[np.float32]

_FRAME_SECONDS = 0.05
"""AAC comes in frames of 1024 samples, so that its stream ends up to one (and its priming) late."""

_JITTER_SECONDS = 0.02
"""Time stamps of containers with coarse clocks jump by less than this; larger jumps are gaps."""


AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Sample rates in Hz that the sound of an mp4 can have."""


def read_audio(path: str | Path, sample_rate: int = 16000) -> Audio:
    """Decode the sound of an audio or video file to mono float32 [N] in [-1, 1].

    Samples are placed by their time stamps, so encoder priming (AAC, MP3, Opus) is removed and
    gaps become silence. In a video file sample 0 is the time of the first frame.

    Raises:
        UsageError: The file is missing, unreadable, has no sound, a value that is not finite, or
            channels that cancel out in the mono mix.
    """
    every, rate = _decoded(path)
    mono = every.mean(axis=0, dtype=np.float64).astype(np.float32)
    loud, mixed = np.abs(every).max(initial=0.0), np.abs(mono).max(initial=0.0)
    if loud > 1e-3 and mixed < 0.02 * loud:
        raise UsageError(
            f"the {len(every)} channels of {path} cancel out when they are mixed",
            "one is the inverse of the other: give a file with one channel",
        )
    return resample(mono, rate, sample_rate)


def read_channels(path: str | Path, sample_rate: int) -> Audio:
    """Decode the sound of a file to float32 [C, N] in [-1, 1], one channel or two.

    Placed in time as by `read_audio`; more than two channels are mixed to stereo, as FFmpeg does.

    Raises:
        UsageError: The file is missing, unreadable, has no sound or a value that is not finite.
    """
    every, rate = _decoded(path, "stereo" if num_channels(path) > 2 else None)
    return np.stack([resample(channel, rate, sample_rate) for channel in every])


def copyable_sound(path: str | Path, seconds: float) -> bool:
    """Return whether an mp4 can take a file's sound as it is, packet by packet.

    It is AAC with its header apart (as in m4a and mp4), begins at time 0 and with the picture, if
    there is one, and is no longer than `seconds`.
    """
    with opened(path) as container:
        stream = container.streams.audio[0] if container.streams.audio else None
        if stream is None or stream.codec_context.name != "aac" or stream.duration is None:
            return False
        starts = [
            float((s.start_time or 0) * s.time_base)
            for s in (*container.streams.audio[:1], *container.streams.video[:1])
        ]
        apart = bool(stream.codec_context.extradata)
        whole = float(stream.duration * stream.time_base)
    return apart and max(map(abs, starts)) < 1e-3 and whole <= seconds + _FRAME_SECONDS


def num_channels(path: str | Path) -> int:
    """Return how many channels a file's sound has, 0 without sound.

    Raises:
        UsageError: The file is unreadable.
    """
    with opened(path) as container:
        return int(container.streams.audio[0].channels) if container.streams.audio else 0


def sound_rate(path: str | Path) -> int:
    """Return the samples a second of a file's sound, or 48,000 where an mp4 cannot have that rate.

    Raises:
        UsageError: The file is unreadable or has no sound.
    """
    with opened(path) as container:
        if not container.streams.audio:
            raise UsageError(f"no sound in {path}", "give a file that has an audio track")
        rate = int(container.streams.audio[0].rate or 0)
    return rate if rate in AAC_RATES else 48000


def _decoded(path: str | Path, layout: str | None = None) -> tuple[Audio, int]:
    """Return all channels [C, N], in time and finite, and their rate; `layout` mixes them."""
    with opened(path) as container:
        if not container.streams.audio:
            raise UsageError(f"no sound in {path}", "give a file that has an audio track")
        stream = container.streams.audio[0]
        origin: float | None = None
        if container.streams.video:
            video = container.streams.video[0]
            if video.start_time is not None and video.time_base is not None:
                origin = float(video.start_time * video.time_base)
        try:
            pieces, rate = _decode_samples(container, stream, origin, layout)
        except (FFmpegError, ValueError) as error:
            raise unreadable(path, error) from error
    if not pieces:
        raise UsageError(f"the audio track of {path} is empty", "give a file that has sound")
    every = _joined(pieces)
    wrong = np.flatnonzero(~np.isfinite(every).all(axis=0))
    if len(wrong):
        raise UsageError(
            f"the sound of {path} has {len(wrong)} samples that are not finite,"
            f" the first is sample {wrong[0]} ({wrong[0] / rate:.3f} s)",
            "export the sound again",
        )
    return every, rate


def _joined(pieces: list[tuple[int, Audio]]) -> Audio:
    """Return pieces of sound [C, n] laid at their places, [C, N]; gaps are silence."""
    length = max(start + samples.shape[1] for start, samples in pieces)
    every = np.zeros((pieces[0][1].shape[0], max(length, 0)), np.float32)
    for start, samples in pieces:
        kept = samples[:, max(0, -start) :]
        every[:, max(0, start) : max(0, start) + kept.shape[1]] = kept
    return every


def resample(audio: Audio, rate: int, target: int) -> Audio:
    """Change the rate of `audio` [N] by a zero-phase polyphase filter (no delay)."""
    if rate == target:
        return np.ascontiguousarray(audio, np.float32)
    common = math.gcd(rate, target)
    return np.asarray(resample_poly(audio, target // common, rate // common), np.float32)


def fit_audio(audio: Audio, num_samples: int) -> Audio:
    """Return [..., N] with exactly `num_samples`: cut at the end, or padded with silence."""
    audio = np.asarray(audio, np.float32)[..., :num_samples]
    missing = num_samples - audio.shape[-1]
    return np.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, missing)])


def write_wav(path: str | Path, audio: Audio, sample_rate: int = 16000) -> None:
    """Write mono float32 [N] in [-1, 1] as a 16-bit WAV, complete or not at all."""
    write_atomic(Path(path), _encode_sound(audio, sample_rate, "WAV"))


def encode_flac(audio: Audio, sample_rate: int = 16000) -> bytes:
    """Return mono float32 [N] in [-1, 1] as the bytes of a 16-bit FLAC."""
    return _encode_sound(audio, sample_rate, "FLAC")


def _decode_samples(
    container: Any,
    stream: Any,
    origin: float | None,
    layout: str | None,
) -> tuple[list[tuple[int, Audio]], int]:
    """Return (position, samples [C, n]) pieces relative to `origin`, and their rate."""
    rate = int(stream.rate)
    to_float = av.AudioResampler(format="fltp", rate=rate, layout=layout)
    pieces: list[tuple[int, Audio]] = []
    cursor: int | None = None
    for decoded in container.decode(stream):
        time = decoded.time
        for frame in to_float.resample(decoded):
            samples = frame.to_ndarray().astype(np.float32, copy=False)
            if pieces and samples.shape[0] != pieces[0][1].shape[0]:
                raise ValueError("the number of channels changes within the file")
            if origin is None:
                origin = float(time or 0.0)
            start = round(((time or 0.0) - origin) * rate) if time is not None else cursor
            if cursor is not None and (
                start is None or abs(start - cursor) < _JITTER_SECONDS * rate
            ):
                start = cursor
            pieces.append((start or 0, samples))
            cursor = (start or 0) + samples.shape[1]
    return pieces, rate


def _encode_sound(audio: Audio, sample_rate: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(audio), sample_rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()
