"""Files whose pictures fill memory are read window by window, to the same views."""

import tracemalloc

import numpy as np
import pytest
from critic_toys import CLIP, SMALL

from ft2 import faces
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.media import write_video
from ft2.qwen import view
from ft2.qwen.spec import StreamSpec
from ft2.qwen.view import read_views


def written(path, count, fps, width=64, height=64):
    rng = np.random.default_rng(count)
    frames = rng.integers(0, 255, (count, height, width, 3)).astype(np.uint8)
    audio = (0.1 * rng.standard_normal(round(count / fps * 16000))).astype(np.float32)
    write_video(path, frames, fps, audio)
    return path


@pytest.mark.parametrize(("count", "fps", "size"), [(40, 12.5, 64), (70, 25, 64), (60, 30, 96)])
def test_window_by_window_gives_the_same_views(tmp_path, monkeypatch, count, fps, size):
    path = written(tmp_path / "a.mp4", count, fps, size, size)
    seen = []
    monkeypatch.setattr(faces, "landmarks", lambda picture: seen.append(picture) or picture)
    monkeypatch.setattr(faces, "aligned_box", lambda _: (10.0, 12.0, 80.0, 82.0))
    whole = read_views(path, SMALL)
    monkeypatch.setattr(view, "AT_ONCE", 0)
    parts = read_views(path, SMALL)
    assert len(whole) == len(parts) == min(3, int(count / fps * 12.5) // CLIP.num_frames)
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.audio, other.audio)
    assert len(seen) == (0 if size == 64 else 2)
    if seen:
        assert np.array_equal(*seen)


def test_a_stream_of_whole_frames_sees_what_lies_around_the_face(tmp_path, monkeypatch):
    streams = (
        StreamSpec(answers=("quality",), crop="frame", width=96, height=32, every=2),
        StreamSpec(answers=("motion",), width=32, height=32),
        StreamSpec(answers=("lip",), crop="frame", width=32, height=64, audio=True),
    )
    spec = SMALL.model_copy(update={"streams": streams})
    monkeypatch.setattr(faces, "landmarks", lambda picture: picture)
    monkeypatch.setattr(faces, "aligned_box", lambda _: (40.0, 12.0, 90.0, 62.0))
    frames = np.full((18, 96, 192, 3), 90, np.uint8)
    frames[:, :, 128:] = 200
    write_video(tmp_path / "a.mp4", frames, 12.5, np.zeros(32000, np.float32), crf=4)
    first = read_views(tmp_path / "a.mp4", spec)[0]
    wide, face, tall = (stream.astype(float) for stream in first.streams)
    assert wide.shape[1:] == (32, 96, 3)
    assert wide[..., :60, :].mean() == pytest.approx(90, abs=4)
    assert wide[..., 68:, :].mean() == pytest.approx(200, abs=4)
    assert face.mean() == pytest.approx(90, abs=4)
    assert tall[..., :20, :].mean() == pytest.approx(90, abs=4)
    assert tall[..., 23:, :].mean() == pytest.approx(200, abs=4)
    monkeypatch.setattr(view, "AT_ONCE", 0)
    for one, other in zip(
        first.streams, read_views(tmp_path / "a.mp4", spec)[0].streams, strict=True
    ):
        assert np.array_equal(one, other)


def test_memory_stays_small_however_long_a_file_is(tmp_path, monkeypatch):
    spec = SMALL.model_copy(update={"clip": ClipFormat(num_frames=9, width=320, height=192)})
    frames = np.broadcast_to(np.uint8(90), (600, 192, 320, 3))
    write_video(tmp_path / "a.mp4", frames, 12.5, np.zeros(16000 * 48, np.float32))

    def peak():
        tracemalloc.start()
        read_views(tmp_path / "a.mp4", spec)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak() > frames.nbytes
    monkeypatch.setattr(view, "AT_ONCE", 100e6)
    assert frames.nbytes > 100e6
    assert peak() < frames.nbytes / 2


def test_large_files_that_cannot_be_judged_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(view, "AT_ONCE", 0)
    short = written(tmp_path / "short.mp4", 5, 12.5)
    with pytest.raises(UsageError, match=r"lasts 0\.40 s, the critic needs"):
        read_views(short, SMALL)
    wide = written(tmp_path / "wide.mp4", 20, 12.5, 96, 96)
    with pytest.raises(UsageError, match="no face in the first frame"):
        read_views(wide, SMALL)
    silent = tmp_path / "silent.mp4"
    write_video(silent, np.zeros((20, 64, 64, 3), np.uint8), 12.5)
    with pytest.raises(UsageError, match="no sound"):
        read_views(silent, SMALL)
