import itertools

import librosa
import numpy as np
import pytest

from ft2 import speech
from ft2.errors import MissingExtra, UsageError

TEXT = "Please call the old man before the boat leaves."


@pytest.fixture(scope="module")
def voice():
    return speech.synthesise(TEXT)


def test_voice_is_speech_and_the_same_every_time(voice):
    speech.synthesise("Something else in between.", "de-DE")
    assert np.array_equal(speech.synthesise(TEXT), voice)
    assert voice.dtype == np.float32
    assert 1.5 < len(voice) / 16000 < 6
    assert 0.2 < np.abs(voice).max() <= 1.0
    assert speech.has_speech(voice)


def pitch_of(audio):
    middle = audio[len(audio) // 3 :][:3200].astype(np.float64)
    correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    return 16000 / (int(correlation[40:320].argmax()) + 40)


def test_speed_and_pitch_change_the_voice(voice):
    assert len(speech.synthesise(TEXT, speed=150)) < 0.85 * len(voice)
    low, high = (speech.synthesise("Aaaaah.", pitch=p) for p in (70, 140))
    assert pitch_of(high) > 1.3 * pitch_of(low)


@pytest.mark.parametrize("name", speech.VOICES)
def test_every_voice_speaks(name):
    assert speech.has_speech(speech.synthesise("Hola, hello, hallo, ciao.", name))


def test_wrong_voice_and_empty_text_are_named():
    with pytest.raises(UsageError, match="unknown voice 'en-AU'") as caught:
        speech.synthesise("hello", "en-AU")
    assert "en-GB" in caught.value.hint
    with pytest.raises(UsageError, match="no text"):
        speech.synthesise("  ")


def test_missing_extra_is_named(monkeypatch, voice):
    monkeypatch.setitem(__import__("sys").modules, "ttspico", None)
    monkeypatch.setitem(__import__("sys").modules, "pocketsphinx", None)
    with pytest.raises(MissingExtra, match=r"\.\[speech\]"):
        speech.synthesise("hello")
    with pytest.raises(MissingExtra, match=r"\.\[speech\]"):
        speech.phones(voice)


def test_alignment_has_the_words_phones_in_order_without_gaps(voice):
    found = speech.phones(voice, TEXT)
    names = [phone.name for phone in found if phone.name != "SIL"]
    assert names[:8] == ["P", "L", "IY", "Z", "K", "AO", "L", "DH"]
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(len(voice) / 16000)
    for before, after in itertools.pairwise(found):
        assert before.end == pytest.approx(after.start)
        assert before.end > before.start
        assert not before.name == after.name == "SIL"
    assert found == speech.phones(voice, TEXT)


def test_alignment_finds_a_known_pause_and_moves_with_the_sound(voice):
    late = np.concatenate([voice, np.zeros(16000, np.float32), voice])
    for text in (f"{TEXT} {TEXT}", None):
        found = speech.phones(late, text)
        pauses = [phone for phone in found if phone.name == "SIL" and phone.end - phone.start > 0.9]
        inside = [p for p in pauses if p.start < len(voice) / 16000 + 0.5 < p.end]
        assert len(inside) == 1
    once, moved = speech.phones(voice, TEXT), speech.phones(voice[8000 // 5 :], TEXT)
    starts = [{p.name: p.start for p in found}["AO"] for found in (once, moved)]
    assert starts[0] - starts[1] == pytest.approx(0.1, abs=0.03)


def test_aligned_fricatives_are_high_and_vowels_low(voice):
    """Spectral balance by phone: an oracle for the times that does not know the aligner."""
    mels = speech.log_mel(voice, 40, hop=160)
    balance = mels[:, 30:].mean(axis=1) - mels[:, :12].mean(axis=1)

    def contrast(shift):
        middle = {"high": [], "low": []}
        for phone in speech.phones(voice, TEXT):
            at = round((phone.start + phone.end) * 50 + shift)
            kind = {"Z": "high", "IY": "low", "AO": "low", "OW": "low", "L": "low"}.get(phone.name)
            if kind and 0 <= at < len(balance):
                middle[kind].append(balance[at])
        return np.mean(middle["high"]) - np.mean(middle["low"])

    assert contrast(0) > 0.5
    assert contrast(0) > max(contrast(-15), contrast(15))


def test_unknown_words_digits_and_other_languages_use_the_free_loop(voice):
    free = speech.phones(voice)
    assert len({phone.name for phone in free}) > 8
    assert speech.phones(voice, "Xyzzyqwv " + TEXT) == free
    assert speech.phones(voice, "Call 911") == free
    german = speech.synthesise("Guten Morgen, wie geht es Ihnen?", "de-DE")
    assert len(speech.phones(german, "Guten Morgen, wie geht es Ihnen?")) > 8


@pytest.mark.parametrize("count", [0, 1, 100, 1600, 8000])
def test_silence_of_any_length_is_one_silence(count):
    found = speech.phones(np.zeros(count, np.float32), "hello")
    assert [phone.name for phone in found] == (["SIL"] if count else [])


def test_very_short_speech_gives_some_phones(voice):
    start = next(p for p in speech.phones(voice, TEXT) if p.name == "AO").start
    short = voice[int(start * 16000) :][:3200]
    assert speech.phones(short)[-1].end == pytest.approx(0.2)


def test_silence_quiet_speech_and_offset_are_told_apart(voice):
    assert not speech.has_speech(np.zeros(16000, np.float32))
    assert not speech.has_speech(np.full(16000, 0.3, np.float32))
    assert not speech.has_speech(voice[:100])
    assert speech.has_speech(voice * 0.05)


def test_notes_say_what_was_padded(voice):
    assert speech.speech_notes(voice, 1.68) == []
    assert speech.speech_notes(voice[:8000], 1.68) == [
        "the audio lasts 0.50 s and was padded with silence to 1.68 s"
    ]
    assert "silent" in speech.speech_notes(np.zeros(40000, np.float32), 1.68)[0]


@pytest.mark.parametrize("num_mels", [20, 40, 80])
def test_mel_filters_are_slaneys(num_mels):
    expected = librosa.filters.mel(sr=16000, n_fft=512, n_mels=num_mels)
    assert np.abs(speech.mel_filters(num_mels) - expected).max() < 1e-6


@pytest.mark.parametrize("hop", [160, 320, 640])
def test_log_mel_frames_equal_librosas(voice, hop):
    found = speech.log_mel(voice, 40, hop)
    assert found.shape == (-(-len(voice) // hop), 40)
    shift = 256 - hop // 2
    signal = np.concatenate([np.zeros(max(shift, 0)), voice[max(-shift, 0) :], np.zeros(2048)])
    power = librosa.feature.melspectrogram(
        y=signal, sr=16000, n_fft=512, win_length=400, hop_length=hop, center=False, n_mels=40
    )[:, : len(found)].T
    expected = (np.log10(np.maximum(power, 1e-5)) + 2) / 2
    assert np.abs(found - expected).max() < 1e-4


def test_log_mel_of_a_part_is_the_part_of_the_log_mel(voice):
    whole = speech.log_mel(voice, 40)
    part = speech.log_mel(voice[3200:16000], 40)
    assert np.abs(whole[11:49] - part[1:39]).max() < 1e-5
    assert speech.log_mel(np.zeros(0, np.float32), 40).shape == (0, 40)
    assert (speech.log_mel(np.zeros(1000, np.float32), 40) == -1.5).all()
