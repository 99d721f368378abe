"""Video, sound and pictures in and out.

One path for every file: PyAV (the libraries of FFmpeg) reads and writes both pictures and sound.
Its pixels are those of decord and torchcodec, and it is the only one of the three that also
writes, reports the time stamps that keep sound and picture together, and opens a silent video
without an error. Everything here is deterministic: the encoder runs on one thread, without the
one feature of x264 that is not repeatable, and no clock time is stored, so the same frames give
the same bytes.
"""

from ft2.media.pictures import Frames, contact_sheet, encode_png, read_image, write_png
from ft2.media.sound import (
    Audio,
    copyable_sound,
    encode_flac,
    fit_audio,
    num_channels,
    read_audio,
    read_channels,
    resample,
    sound_rate,
    write_wav,
)
from ft2.media.video import (
    Video,
    encode_mp4,
    even_places,
    frame_times,
    read_clip,
    read_frames,
    read_video,
    write_video,
)

__all__ = [
    "Audio",
    "Frames",
    "Video",
    "contact_sheet",
    "copyable_sound",
    "encode_flac",
    "encode_mp4",
    "encode_png",
    "even_places",
    "fit_audio",
    "frame_times",
    "num_channels",
    "read_audio",
    "read_channels",
    "read_clip",
    "read_frames",
    "read_image",
    "read_video",
    "resample",
    "sound_rate",
    "write_png",
    "write_video",
    "write_wav",
]
