import os
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from ft2 import media
from ft2.errors import UsageError

SECONDS = 1.68
RATE = 16000


def chirps(seconds=SECONDS, rate=RATE, seed=0):
    """Noise bursts: a sound whose cross-correlation has one sharp peak."""
    rng = np.random.default_rng(seed)
    count = round(seconds * rate)
    envelope = np.repeat(rng.random(count // 800 + 1) > 0.5, 800)[:count]
    noise = np.convolve(rng.normal(size=count), np.ones(4) / 4, "same")
    return (0.3 * envelope * noise).astype(np.float32)


def moving_blocks(num_frames=21, height=64, width=64, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 220, (1, height // 8, width // 8, 3))
    still = small.repeat(8, 1).repeat(8, 2)
    frames = np.repeat(still, num_frames, axis=0)
    for index in range(num_frames):
        frames[index, 8 : 8 + 16, index : index + 16] = (index * 9, 128, 255 - index * 9)
    return frames.astype(np.uint8)


def lag_of(found, given):
    full = np.correlate(found.astype(np.float64), given.astype(np.float64), "full")
    return int(full.argmax()) - (len(given) - 1)


def test_round_trip_keeps_pictures_rate_and_sound(tmp_path):
    frames, sound = moving_blocks(), chirps()
    media.write_video(tmp_path / "a.mp4", frames, 12.5, sound, metadata={"ft2": "x"})
    video = media.read_video(tmp_path / "a.mp4", need_audio=True)
    assert video.frames.shape == frames.shape
    assert video.fps == 12.5
    assert np.abs(video.frames.astype(int) - frames).mean() < 5
    assert len(video.audio) == len(sound) == 26880
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["ft2"] == "x"
        assert container.streams.video[0].average_rate == Fraction(25, 2)
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_aac_priming_is_removed(tmp_path, rate):
    sound = chirps(rate=rate)
    media.write_video(tmp_path / "a.mp4", moving_blocks(), 12.5, sound, sample_rate=rate)
    found = media.read_video(tmp_path / "a.mp4", sample_rate=rate).audio
    assert abs(lag_of(found, sound)) / rate < 0.002
    assert np.corrcoef(found, sound)[0, 1] > 0.9


def test_resampling_has_no_delay():
    low = chirps()
    up = media.resample(low, 16000, 48000)
    back = media.resample(up, 48000, 16000)
    assert len(up) == 3 * len(low)
    assert lag_of(back, low) == 0
    odd = media.resample(media.resample(low, 16000, 44100), 44100, 16000)
    assert abs(lag_of(odd, low)) <= 1


def test_sound_starts_with_the_first_frame_when_its_track_starts_later(tmp_path):
    """A sound track that begins 0.4 s after the picture is preceded by 0.4 s of silence."""
    sound, path = chirps(1.0), tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width = picture.height = 64
        track = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for index, image in enumerate(moving_blocks(40)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        pcm = (sound * 32767).astype(np.int16)[None]
        for start in range(0, RATE, 800):
            frame = av.AudioFrame.from_ndarray(pcm[:, start : start + 800].copy(), layout="mono")
            frame.sample_rate, frame.pts = RATE, round(0.4 * RATE) + start
            frame.time_base = Fraction(1, RATE)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    video = media.read_video(path)
    assert len(video.audio) == round(1.6 * RATE)
    assert abs(lag_of(video.audio, sound) - 0.4 * RATE) < 0.002 * RATE


def test_same_frames_give_the_same_bytes():
    rng = np.random.default_rng(0)
    flicker = rng.integers(0, 255, (21, 8, 8, 3)).astype(np.uint8)
    frames, sound = flicker.repeat(8, 1).repeat(8, 2), chirps()
    first = media.encode_mp4(frames, 12.5, sound)
    for _ in range(25):
        litter = [np.full(rng.integers(100, 20000), rng.random()) for _ in range(40)]
        del litter[::2]
        assert media.encode_mp4(frames, 12.5, sound) == first


def test_short_sound_is_padded_and_long_sound_cut(tmp_path):
    media.write_video(tmp_path / "a.mp4", moving_blocks(), 12.5, chirps(0.5))
    video = media.read_video(tmp_path / "a.mp4")
    assert len(video.audio) == 26880
    assert np.abs(video.audio[12000:]).max() < 0.01
    assert media.fit_audio(np.ones(5, np.float32), 3).tolist() == [1, 1, 1]
    assert media.fit_audio(np.ones(2, np.float32), 4).tolist() == [1, 1, 0, 0]


def test_silent_video_reads_unless_sound_is_needed(tmp_path):
    path = tmp_path / "silent.mp4"
    media.write_video(path, moving_blocks(), 12.5)
    assert media.read_video(path).audio is None
    with pytest.raises(UsageError, match=r"no sound in .*silent\.mp4") as caught:
        media.read_video(path, need_audio=True)
    assert caught.value.hint
    with pytest.raises(UsageError, match="no sound"):
        media.read_audio(path)


def test_rotated_phone_video_is_upright(tmp_path):
    """The display matrix of a file that a phone held upright would write."""
    frames = moving_blocks(5, 64, 96)
    plain = media.encode_mp4(frames, 25)
    identity = b"".join(v.to_bytes(4, "big") for v in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    minus = (-65536).to_bytes(4, "big", signed=True)
    one, nil, w = (65536).to_bytes(4, "big"), bytes(4), (1 << 30).to_bytes(4, "big")
    quarter = nil + one + nil + minus + nil + nil + (64 << 16).to_bytes(4, "big") + nil + w
    head = plain.index(b"tkhd")
    at = plain.index(identity, head)
    path = tmp_path / "phone.mp4"
    path.write_bytes(plain[:at] + quarter + plain[at + len(identity) :])
    video = media.read_video(path)
    assert video.frames.shape == (5, 96, 64, 3)
    turned = np.rot90(frames, -1, axes=(1, 2))
    assert np.abs(video.frames.astype(int) - turned).mean() < 6


@pytest.mark.parametrize("keep", [0.97, 0.6, 0.2, 0.0])
def test_truncated_video_is_refused(tmp_path, keep):
    """A fragmented file can be cut anywhere and still opens; a plain mp4 loses its index."""
    path, whole = tmp_path / "cut.mp4", media.encode_mp4(moving_blocks(), 12.5, chirps())
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UsageError, match=r"cut\.mp4"):
        media.read_video(path)


def test_video_whose_data_is_cut_behind_its_index_is_refused(tmp_path):
    whole = tmp_path / "whole.mp4"
    options = {"movflags": "faststart"}
    with av.open(str(whole), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for image in moving_blocks(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    data = whole.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.7)])
    assert len(media.read_video(whole).frames) == 40
    with pytest.raises(UsageError, match="cannot decode"):
        media.read_video(cut)


@pytest.mark.parametrize("content", [b"", b"not a video", os.urandom(5000)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    for call in (media.read_video, media.read_audio):
        with pytest.raises(UsageError, match=r"cannot decode .*x\.mp4"):
            call(path)


def test_missing_file_and_sound_file_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"no such file: .*none\.mp4"):
        media.read_video(tmp_path / "none.mp4")
    media.write_wav(tmp_path / "a.wav", chirps())
    with pytest.raises(UsageError, match="no picture"):
        media.read_video(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (np.zeros((3, 64, 65, 3), np.uint8), "65x64"),
        (np.zeros((3, 63, 64, 3), np.uint8), "64x63"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"\[0, 64, 64, 3\]"),
        (np.zeros((3, 64, 64), np.uint8), r"\[3, 64, 64\]"),
        (np.zeros((3, 64, 64, 3), np.float32), "float32"),
    ],
)
def test_frames_that_cannot_be_written_leave_nothing(tmp_path, frames, text):
    with pytest.raises(UsageError, match=text):
        media.write_video(tmp_path / "a.mp4", frames, 25)
    assert list(tmp_path.iterdir()) == []


def clip_format(**changes):
    fields = {"width": 64, "height": 64, "num_frames": 21, "fps": 12.5, "sample_rate": RATE}
    return SimpleNamespace(**{**fields, "num_samples": 26880, **changes})


def test_clip_must_have_exactly_its_format(tmp_path):
    path = tmp_path / "a.mp4"
    media.write_video(path, moving_blocks(), 12.5, chirps())
    video = media.read_clip(path, clip_format())
    assert (len(video.frames), len(video.audio)) == (21, 26880)
    for change in ({"fps": 25.0}, {"num_frames": 41}, {"width": 32}):
        with pytest.raises(UsageError, match=r"64x64, 21 frames at 12\.5 fps") as caught:
            media.read_clip(path, clip_format(**change))
        assert str(next(iter(change.values()))) in caught.value.hint


def test_pixels_are_those_of_decord(tmp_path):
    import decord

    media.write_video(tmp_path / "a.mp4", moving_blocks(), 12.5)
    reader = decord.VideoReader(str(tmp_path / "a.mp4"))
    expected = reader.get_batch(list(range(len(reader)))).asnumpy()
    assert np.array_equal(media.read_video(tmp_path / "a.mp4").frames, expected)


def test_variable_rate_is_brought_to_a_constant_one(tmp_path):
    """Frames 0..9 at 25 a second, a pause, frames 10..19 at 12.5: the sound must stay in step."""
    frames = moving_blocks()[:20]
    path = tmp_path / "v.mp4"
    times = [k / 25 for k in range(10)] + [1.0 + k / 12.5 for k in range(10)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = media.read_video(path)
    assert len(found.frames) / found.fps == pytest.approx(times[-1], abs=0.15)
    for k, shown in enumerate(found.frames):
        want = frames[np.abs(np.array(times) - k / found.fps).argmin()]
        near = [k / found.fps - t for t in times]
        if abs(min(near, key=abs)) < 0.02:  # no two frames are equally near
            assert np.abs(shown.astype(int) - want).mean() < 6
