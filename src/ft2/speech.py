"""Speech: an offline voice, phone timings, log-mel features, and a check for silence.

The voice is SVOX Pico (PyPI `ttspico`), phone timings come from CMU PocketSphinx; both carry
their models in the wheel. Both are deterministic: every call starts from a fresh engine, since
Pico and PocketSphinx's running cepstral mean otherwise carry over from the last call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ft2.errors import MissingExtra, UsageError

SAMPLE_RATE = 16000
"""Rate in Hz of all speech in this module."""

VOICES = ("en-US", "en-GB", "de-DE", "es-ES", "fr-FR", "it-IT")
"""The voices that `synthesise` knows."""

LOG_MEL_FLOOR = 1e-5
"""Mel power below this is taken as silence."""

_WINDOW = 400
_FFT = 512
_SPEECH_POWER = 10 ** (-55.0 / 10)

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Phone:
    """One phone: ARPAbet `name` without stress ("SIL" for silence), `start` and `end` in s."""

    name: str
    start: float
    end: float


def synthesise(text: str, voice: str = "en-US", speed: int = 100, pitch: int = 100) -> Audio:
    """Speak `text`; returns mono float32 [N] in [-1, 1] at 16 kHz.

    Args:
        text: What to say, in the language of the voice.
        voice: One of `VOICES`.
        speed: Rate of speech in percent of the voice's own (20 to 500).
        pitch: Pitch in percent of the voice's own (50 to 200).

    Raises:
        UsageError: Unknown voice, or nothing to say.
        MissingExtra: ttspico is not installed.
    """
    if voice not in VOICES:
        raise UsageError(f"unknown voice '{voice}'", f"choose one of {', '.join(VOICES)}")
    if not text.strip():
        raise UsageError("there is no text to speak", "give at least one word")
    try:
        from ttspico import TtsEngine
    except ImportError as error:
        raise MissingExtra("ttspico", "speech") from error
    engine = TtsEngine(voice)
    engine.rate, engine.pitch = speed, pitch
    pcm = engine.speak(text)
    return np.frombuffer(pcm, np.int16).astype(np.float32) / 32768.0


def phones(audio: Audio, text: str | None = None) -> list[Phone]:
    """Return the phones of `audio` with their times, without gaps, in order.

    Audio without speech (`has_speech`) is one silence. With `text` whose words are all in the
    English dictionary the phones are a forced alignment of it. Otherwise (no text, unknown words,
    or an alignment that fails) they come from a free phone loop, which needs no words and also
    gives usable mouth timings for other languages.

    Args:
        audio: float32 [N] mono at 16 kHz.
        text: The words spoken, if known.

    Raises:
        MissingExtra: pocketsphinx is not installed.
    """
    seconds = len(audio) / SAMPLE_RATE
    if not has_speech(audio):
        return _without_gaps([], seconds)
    pcm = (np.clip(audio, -1, 1) * 32767).astype(np.int16).tobytes()
    found: list[Phone] = []
    words = re.findall(r"[a-z']+", text.lower()) if text else []
    if words and not re.search(r"\d", text or ""):
        found = _align(pcm, words)
    if not found:
        found = [_hushed(phone, audio) for phone in _free_loop(pcm)]
    return _without_gaps(found, seconds)


def has_speech(audio: Audio) -> bool:
    """Say whether `audio` (float32 [N], 16 kHz) is more than silence and hum.

    By energy: at least 0.1 s must be louder than -55 dBFS once the mean is taken off.
    """
    return int((_power(audio) > _SPEECH_POWER).sum()) >= 5


def speech_notes(audio: Audio, seconds: float) -> list[str]:
    """Return what a person should know before `audio` drives a clip of `seconds`.

    Silent and short speech is used all the same (padded with silence); the notes say so.
    """
    notes = []
    given = len(audio) / SAMPLE_RATE
    if not has_speech(audio):
        notes.append("the audio is silent: the mouth will stay closed")
    if given < seconds:
        notes.append(
            f"the audio lasts {given:.2f} s and was padded with silence to {seconds:.2f} s"
        )
    return notes


def log_mel(audio: Audio, num_mels: int, hop: int = 320) -> NDArray[np.float32]:
    """Return log-mel frames [T, num_mels], T = ceil(N / hop), about -1.5 (silence) to 2.

    Frame i is centred on sample (i + 0.5) * hop: 25 ms Hann window, power spectrum, triangular
    mel filters (Slaney's scale and area normalisation, 0 to 8 kHz), then
    (log10(max(power, 1e-5)) + 2) / 2. No statistic of the whole clip enters, so a window of the
    sound has the features of that part of the whole.

    Args:
        audio: float32 [N] mono at 16 kHz.
        num_mels: Number of filters.
        hop: Samples from frame to frame; 320 gives 50 frames a second.
    """
    count = -(-len(audio) // hop)
    left = _WINDOW // 2 - hop // 2
    wanted = (count - 1) * hop + _WINDOW if count else 0
    padded = np.zeros(max(wanted, 0), np.float64)
    source = np.asarray(audio, np.float64)
    skip = max(-left, 0)
    place = max(left, 0)
    part = source[skip : skip + wanted - place] if count else source[:0]
    padded[place : place + len(part)] = part
    starts = np.arange(count)[:, None] * hop + np.arange(_WINDOW)[None]
    window = np.hanning(_WINDOW + 1)[:-1]
    spectrum = np.abs(np.fft.rfft(padded[starts] * window, _FFT)) ** 2
    power = spectrum @ mel_filters(num_mels).T
    return ((np.log10(np.maximum(power, LOG_MEL_FLOOR)) + 2) / 2).astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(num_mels: int) -> NDArray[np.float64]:
    """Return triangular mel filters [num_mels, 257] over a 512-point spectrum at 16 kHz."""
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), num_mels + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - low) / (centre - low)
    falling = (high - bins) / (high - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(filters * 2.0 / (high - low))


def _hz_to_mel(hz: float) -> float:
    """Slaney's mel scale: linear below 1 kHz (15 mel), logarithmic above."""
    if hz < 1000.0:
        return hz * 3.0 / 200.0
    return float(15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    high = 1000.0 * np.exp(np.log(6.4) / 27.0 * (mel - 15.0))
    return np.where(mel < 15.0, mel * 200.0 / 3.0, high)


def _decoder(**options: Any) -> Any:
    try:
        import pocketsphinx
    except ImportError as error:
        raise MissingExtra("pocketsphinx", "speech") from error
    model = Path(pocketsphinx.get_model_path("en-us"))
    if options.get("allphone"):
        options["allphone"] = str(model / "en-us-phone.lm.bin")
    return pocketsphinx.Decoder(
        hmm=str(model / "en-us"),
        dict=None if options.get("allphone") else str(model / "cmudict-en-us.dict"),
        lm=None,
        samprate=SAMPLE_RATE,
        loglevel="FATAL",
        cmn="batch",
        **options,
    )


def _run(decoder: Any, pcm: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def _align(pcm: bytes, words: list[str]) -> list[Phone]:
    """Force-align; an empty list when a word is unknown or the search fails."""
    decoder = _decoder()
    if any(decoder.lookup_word(word) is None for word in words):
        return []
    try:
        decoder.set_align_text(" ".join(words))
        _run(decoder, pcm)
        decoder.set_alignment()
        _run(decoder, pcm)
        units = [unit for word in decoder.get_alignment() for unit in word]
    except RuntimeError:
        return []
    return [_phone(unit.name, unit.start, unit.start + unit.duration) for unit in units]


def _free_loop(pcm: bytes) -> list[Phone]:
    decoder = _decoder(allphone=True, beam=1e-20, pbeam=1e-20, lw=2.0)
    try:
        _run(decoder, pcm)
        return [_phone(s.word, s.start_frame, s.end_frame + 1) for s in decoder.seg() or ()]
    except RuntimeError:
        return []


def _phone(name: str, start: int, end: int) -> Phone:
    plain = name.rstrip("012")
    return Phone(plain if plain.isalpha() else "SIL", start / 100.0, end / 100.0)


def _power(audio: Audio) -> NDArray[np.float64]:
    """Return the power [N // 320] of blocks of 20 ms, their means taken off."""
    size = SAMPLE_RATE // 50
    blocks = np.asarray(audio[: len(audio) // size * size], np.float64).reshape(-1, size)
    return np.asarray(((blocks - blocks.mean(axis=1, keepdims=True)) ** 2).mean(axis=1))


def _hushed(phone: Phone, audio: Audio) -> Phone:
    """Return silence in place of a phone that the free loop heard in digital silence."""
    part = audio[round(phone.start * SAMPLE_RATE) : round(phone.end * SAMPLE_RATE)]
    silent = (_power(part) <= _SPEECH_POWER).all()
    return Phone("SIL", phone.start, phone.end) if silent else phone


def _without_gaps(found: list[Phone], seconds: float) -> list[Phone]:
    """Close gaps with silence, cut at the end of the audio, and join neighbouring silences."""
    result: list[Phone] = []
    cursor = 0.0
    for phone in [*found, Phone("SIL", seconds, seconds)]:
        start, end = min(phone.start, seconds), min(phone.end, seconds)
        pieces = [Phone("SIL", cursor, start)] if start > cursor + 1e-9 else []
        if end > start:
            pieces.append(Phone(phone.name, max(start, cursor), end))
        for piece in pieces:
            if result and result[-1].name == piece.name == "SIL":
                piece = Phone("SIL", result.pop().start, piece.end)
            result.append(piece)
        cursor = max(cursor, end, start)
    return result
