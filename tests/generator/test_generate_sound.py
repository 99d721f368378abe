"""The sound of the video is that of the file: AAC copied, stereo kept, trimmed where it must be."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from ft2 import faces, media
from ft2.__main__ import main
from ft2.puppet import identities

RATE = 44100


@pytest.fixture
def make(trained, tmp_path):
    """Run ``ft2 generate`` on a sound; returns both channels of the video, and its record."""
    media.write_png(tmp_path / "face.png", faces.align(identities.load("astronaut").image))

    def call(sound, *settings):
        base = [f"model.weights={trained / 'model'}", "steps=1", "min_portrait_psnr=null"]
        output = tmp_path / f"{sound.stem}.mp4"
        paths = ["--portrait", tmp_path / "face.png", "--audio", sound, "-o", output, "-q"]
        with pytest.raises(SystemExit) as stop:
            main(["generate", *base, *settings, *map(str, paths)])
        assert stop.value.code == 0
        record = json.loads(output.with_suffix(".json").read_text())
        return media.read_channels(output, RATE), record

    return call


def two_tones(seconds):
    """[2, N]: 500 Hz on the left, 3 kHz on the right."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * np.array([[500.0], [3000.0]]) * time)).astype(np.float32)


def loudest(channel):
    part = channel[3000:13000]
    return np.abs(np.fft.rfft(part)).argmax() * RATE / len(part)


def write_m4a(path, sound):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.size]


def test_stereo_stays_stereo_in_time(make, tmp_path):
    tones = two_tones(0.6)
    soundfile.write(tmp_path / "two.wav", tones.T, RATE, subtype="FLOAT")
    sound, record = make(tmp_path / "two.wav")
    assert record["sound"] == "encoded, 44100 Hz"
    assert [loudest(c) for c in sound] == pytest.approx([500, 3000], abs=5)
    inner = slice(4000, 22000)
    error = sound[:, inner] - tones[:, inner]
    assert np.sqrt((error**2).mean()) < 0.01, "decoded where it was, to the coder's precision"


def test_aac_is_copied_bit_for_bit(make, tmp_path):
    write_m4a(tmp_path / "voice.m4a", two_tones(0.6))
    sound, record = make(tmp_path / "voice.m4a")
    assert record["sound"] == "copied"
    assert packets(tmp_path / "voice.mp4") == packets(tmp_path / "voice.m4a")
    assert np.array_equal(sound, media.read_channels(tmp_path / "voice.m4a", RATE))


def test_aac_that_is_cut_is_encoded_anew(make, tmp_path):
    write_m4a(tmp_path / "long.m4a", two_tones(1.2))
    sound, record = make(tmp_path / "long.m4a", "max_seconds=0.5")
    assert record["sound"] == "encoded, 44100 Hz"
    assert sound.shape == (2, pytest.approx(0.56 * RATE, abs=0.06 * RATE))
    assert [loudest(c) for c in sound] == pytest.approx([500, 3000], abs=5)


def test_many_channels_are_mixed_to_stereo_with_a_remark(make, tmp_path):
    six = np.zeros((6, RATE // 2), np.float32)
    six[:2] = two_tones(0.5)
    soundfile.write(tmp_path / "six.wav", six.T, RATE)
    sound, record = make(tmp_path / "six.wav")
    assert [loudest(c) for c in sound] == pytest.approx([500, 3000], abs=5)
    assert "the video gets the 6 channels mixed to stereo" in record["remarks"]


def test_sound_that_starts_late_is_not_copied(tmp_path):
    write_m4a(tmp_path / "voice.m4a", two_tones(0.5))
    frames = np.zeros((13, 64, 64, 3), np.uint8)
    media.write_video(tmp_path / "film.mp4", frames, 25, two_tones(0.5), sample_rate=RATE)
    assert media.copyable_sound(tmp_path / "film.mp4", 0.52)
    assert not media.copyable_sound(tmp_path / "film.mp4", 0.3)
    source, late = av.open(str(tmp_path / "voice.m4a")), av.open(str(tmp_path / "late.mp4"), "w")
    with source, late:
        stream = late.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts + RATE // 4, packet.dts + RATE // 4
                packet.stream = stream
                late.mux(packet)
    assert not media.copyable_sound(tmp_path / "late.mp4", 1.0)
