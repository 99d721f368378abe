"""Clips as people bring them: no frames, a variable rate, a wrong ending, wrong labels."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import ft2.puppet
from ft2.critic import TalkingCritic


@pytest.fixture(scope="module")
def face():
    """A face large enough to be found, uint8 [160, 160, 3]."""
    path = Path(ft2.puppet.__file__).parent / "faces" / "astronaut.jpg"
    return np.asarray(Image.open(path).convert("RGB").resize((160, 160)))


def write(path, frames, times, container_format=None):
    """Write frames at these times (seconds), with a second of noise as sound."""
    rng = np.random.default_rng(0)
    sound = (0.1 * rng.standard_normal(20000)).astype(np.float32)
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        voice = container.add_stream("aac", rate=16000)
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        heard = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        heard.sample_rate, heard.pts = 16000, 0
        container.mux(voice.encode(heard))
        container.mux(voice.encode())
    return path


def lit(face, time):
    """Return the face under a lamp that flickers slowly."""
    return (face * (0.55 + 0.4 * np.sin(4 * time))).astype(np.uint8)


def test_a_variable_rate_is_judged_by_its_time_stamps(adapter, face, tmp_path):
    """Half of the frames in a quarter of the time: read at an even rate it is another clip."""
    even = np.arange(30) / 25
    uneven = np.concatenate([np.arange(15) / 50, 0.3 + 0.9 * np.arange(15) / 15])
    clips = {
        "constant": write(tmp_path / "c.mp4", [lit(face, t) for t in even], even),
        "variable": write(tmp_path / "v.mp4", [lit(face, t) for t in uneven], uneven),
        "misread": write(tmp_path / "m.mp4", [lit(face, t) for t in uneven], even),
    }
    rows = TalkingCritic.from_pretrained(adapter).score(videos=list(clips.values()))
    assert [row.error for row in rows] == [None] * 3
    constant, variable, misread = (np.array(list(row.log_odds.values())) for row in rows)
    assert np.abs(variable - constant).max() < 0.5 * np.abs(misread - constant).max()


def test_the_ending_of_a_file_says_nothing(adapter, face, tmp_path):
    """A Matroska file that is named mp4 is read by its content."""
    times = np.arange(30) / 25
    clip = write(tmp_path / "a.mp4", [lit(face, t) for t in times], times, "matroska")
    (row,) = TalkingCritic.from_pretrained(adapter).score(videos=[clip])
    assert row.error is None
    assert all(0 < p < 1 for p in row.p.values())
