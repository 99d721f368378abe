"""The puppet world: utterances, clips and their ground truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ft2 import speech
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.puppet import defects as spoil
from ft2.puppet import identities, manner
from ft2.puppet.curves import Curves, Style, from_speech, lip_tracks, rise
from ft2.puppet.fields import Array
from ft2.puppet.portrait import Identity
from ft2.puppet.render import Puppet
from ft2.puppet.sentences import SENTENCES

PHONES_FILE = Path(__file__).parent / "phones.json"


@dataclass(frozen=True)
class Speaker:
    """A synthetic voice: one of `speech.VOICES` at a speed and pitch in percent."""

    voice: str
    speed: int
    pitch: int

    @property
    def name(self) -> str:
        """Short name for ids."""
        return f"{self.voice}-{self.speed}-{self.pitch}"


SPEAKERS = {
    "train": [
        Speaker("en-US", 100, 100), Speaker("en-GB", 95, 100), Speaker("en-US", 110, 78),
        Speaker("en-GB", 105, 125), Speaker("en-US", 90, 120), Speaker("en-GB", 112, 84),
    ],
    "dev": [Speaker("en-US", 104, 92), Speaker("en-GB", 98, 112)],
    "test": [Speaker("en-US", 96, 88), Speaker("en-GB", 103, 116)],
}  # fmt: skip
"""Speakers of each split; a split shares neither sentences nor speakers with another."""


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence.

    Attributes:
        audio_id: Name, unique over splits.
        text: What is said.
        voice: Name of the speaker.
        audio: float32 [N], mono, 16 kHz.
        phones: Phones with times in s.
    """

    audio_id: str
    text: str
    voice: str
    audio: Array
    phones: tuple[speech.Phone, ...]

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return len(self.audio) / speech.SAMPLE_RATE


@dataclass(frozen=True)
class PuppetClip:
    """A clip with everything that made it.

    Attributes:
        frames: uint8 [F, H, W, 3]; frame 0 is the portrait at rest.
        audio: float32 [num_samples], 16 kHz.
        curves: Clean driving curves.
        shown: Curves after lip and motion defects.
        defects: What was spoiled.
        caption: What the person does.
        labels: Per dimension, True when nothing was spoiled.
        identity_id: Who.
        audio_id: Which utterance, and where it starts.
    """

    frames: NDArray[np.uint8]
    audio: Array
    curves: Curves
    shown: Curves
    defects: tuple[spoil.Defect, ...]
    caption: str
    labels: dict[str, bool]
    identity_id: str
    audio_id: str


def utterances(split: str, limit: int | None = None) -> list[Utterance]:
    """Return the utterances of a split, synthesised on the spot (10 ms each).

    Phones come from the shipped `phones.json` where the sound has the length noted there, else
    from a new alignment (0.15 s each).

    Args:
        split: train, dev or test.
        limit: Only the first so many (speakers take turns over the sentences).

    Raises:
        UsageError: Unknown split.
        MissingExtra: ttspico (or, without shipped phones, pocketsphinx) is not installed.
    """
    if split not in SENTENCES:
        raise UsageError(f"unknown split '{split}'", f"choose one of {', '.join(SENTENCES)}")
    texts, speakers = SENTENCES[split], SPEAKERS[split]
    rounds = range(len(speakers))
    count = len(speakers)
    order = [(k, speakers[(k + turn) % count]) for turn in rounds for k in range(len(texts))]
    return [_utterance(split, k, speaker) for k, speaker in order[:limit]]


@lru_cache(maxsize=2048)
def _utterance(split: str, number: int, speaker: Speaker) -> Utterance:
    text = SENTENCES[split][number]
    audio = speech.synthesise(text, speaker.voice, speaker.speed, speaker.pitch)
    audio_id = f"{split}{number:03d}-{speaker.name}"
    stored = _shipped_phones().get(audio_id)
    if stored and stored["samples"] == len(audio):
        found = [speech.Phone(str(n), float(a), float(b)) for n, a, b in stored["phones"]]
    else:
        found = speech.phones(audio, text)
    return Utterance(audio_id, text, speaker.name, audio, tuple(found))


@lru_cache(maxsize=1)
def _shipped_phones() -> dict[str, dict[str, Any]]:
    if not PHONES_FILE.is_file():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(PHONES_FILE.read_text())
    return found


def start_times(utterance: Utterance, seconds: float) -> list[float]:
    """Return starts (s) of windows that are mostly speech, from 0.1 s before the first word on.

    A window of an utterance shorter than `seconds` starts at 0.
    """
    voiced = [p for p in utterance.phones if p.name != "SIL"]
    if not voiced or utterance.seconds <= seconds:
        return [0.0]
    first, last = max(voiced[0].start - 0.1, 0.0), voiced[-1].end + 0.1 - seconds
    return [float(t) for t in np.arange(first, max(last, first + 0.01), 0.16)]


def window(audio: Array, start: float, clip: ClipFormat) -> Array:
    """Return the clip's part of an utterance from `start` s on, padded with silence."""
    first = round(start * clip.sample_rate)
    part = audio[first : first + clip.num_samples]
    return np.pad(part, (0, clip.num_samples - len(part))).astype(np.float32)


def make_clip(
    identity: Identity, utterance: Utterance, start: float, seed: int,
    defects: Sequence[spoil.Defect], clip: ClipFormat, style: Style | None = None,
    puppet: Puppet | None = None,
) -> PuppetClip:  # fmt: skip
    """Make one clip.

    Args:
        identity: Who talks.
        utterance: What is said.
        start: Where in the utterance the clip starts, in s.
        seed: Seeds motion (and the style, if none is given).
        defects: What to spoil, at most one per dimension.
        clip: Size and length.
        style: What the person does besides talking; drawn from `seed` if None.
        puppet: `Puppet(identity, clip.width)` to reuse over several clips.
    """
    if clip.width != clip.height:
        raise UsageError(f"puppets are square, not {clip.width}x{clip.height}", "use equal sides")
    style = style or Style.draw(np.random.default_rng([seed, 17]))
    times = np.arange(clip.num_frames) / clip.fps

    def lips_at(shift: float) -> Array:
        tracks = lip_tracks(utterance.phones, utterance.audio, start + shift + times)
        return np.stack(tracks, -1) * rise(times)[:, None]

    curves = from_speech(
        utterance.phones, utterance.audio, clip.fps, clip.num_frames, seed, style, start
    )
    shown = spoil.apply_to_curves(curves, defects, clip.fps, lips_at)
    puppet = puppet or Puppet(identity, clip.width, 2 if clip.width <= 128 else 1)
    frames = spoil.apply_to_frames(puppet.frames(shown), defects)
    spoiled = {defect.dimension for defect in defects}
    labels = {name: name not in spoiled for name in ("motion", "lip", "quality")}
    audio_id = f"{utterance.audio_id}@{round(start * 1000):05d}"
    return PuppetClip(
        frames, window(utterance.audio, start, clip), curves, shown, tuple(defects),
        style.caption(), labels, identity.identity_id, audio_id,
    )  # fmt: skip


def random_clip(split: str, seed: int, clip: ClipFormat, probability: float = 0.5) -> PuppetClip:
    """Make the clip number `seed` of a split: face, speech, motion and defects drawn from it."""
    return next(iter(random_clips(split, seed, 1, clip, probability)))


def random_clips(
    split: str, seed: int, count: int, clip: ClipFormat, probability: float = 0.5,
    energy: tuple[float, float] = (1.0, 1.0), manners: bool = False,
) -> list[PuppetClip]:  # fmt: skip
    """Make `count` clips of one new person, each with its own speech, motion and defects.

    Args:
        split: train, dev or test.
        seed: Number of the person.
        count: How many clips.
        clip: Size and length.
        probability: Chance of a defect, independent per dimension.
        energy: From and to what the head's energy (`Style.energy`) is drawn, log-uniformly.
        manners: Each person holds the head as `ft2.puppet.manner` says; else all hold it level.
    """
    identity = identities.draw(split, seed)
    puppet = Puppet(identity, clip.width, 2 if clip.width <= 128 else 1)
    spoken = utterances(split)
    hold = manner.held_pitch(identity) if manners else 0.0
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number, 19])
        utterance = spoken[rng.integers(len(spoken))]
        starts = start_times(utterance, clip.seconds)
        start = starts[rng.integers(len(starts))]
        found = spoil.sample(rng, probability)
        motion_seed = int(rng.integers(2**31))
        style = Style.draw(np.random.default_rng([motion_seed, 17]))
        drawn = np.exp(np.random.default_rng([seed, number, 29]).uniform(*np.log(energy)))
        style = replace(style, energy=float(drawn), hold=hold)
        made.append(make_clip(identity, utterance, start, motion_seed, found, clip, style, puppet))
    return made
