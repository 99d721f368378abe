import numpy as np

from ft2 import media, speech


def test_real_portrait_speech(shared_data):
    audio = media.read_audio(shared_data / "portrait" / "woman.wav")
    assert 9 < len(audio) / 16000 < 11
    assert speech.has_speech(audio)
    assert len({phone.name for phone in speech.phones(audio)}) > 15


def test_real_videos_with_and_without_sound(shared_data):
    folder = shared_data / "videoalign"
    loud = media.read_video(folder / "example_1_B.mp4", need_audio=True)
    assert loud.frames.shape == (152, 720, 1280, 3)
    assert len(loud.audio) == round(152 / 30 * 16000)
    assert np.abs(loud.audio).max() > 0.01
    silent = media.read_video(folder / "example_3_B.mp4")
    assert silent.audio is None
    assert (silent.fps, len(silent.frames)) == (16.0, 60)
