"""Puppet clips whose truth is known: two new faces, two utterances each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ft2 import media
from ft2.config import ClipFormat
from ft2.metrics.measure import Clip
from ft2.puppet import identities, world
from ft2.puppet.defects import Defect
from ft2.puppet.render import Puppet

FORMAT = ClipFormat()


@dataclass
class Talker:
    """A clean clip, and the means to spoil it."""

    identity: object
    puppet: Puppet
    utterance: object
    start: float
    seed: int

    def made(self, *defects):
        return world.make_clip(
            self.identity, self.utterance, self.start, self.seed, defects, FORMAT,
            puppet=self.puppet,
        )  # fmt: skip

    def clip(self, *names, strength=0.9):
        found = self.made(*(Defect(name, strength, self.seed) for name in names))
        return Clip(Path("clip.mp4"), found.frames, FORMAT.fps, found.audio)

    def sound(self, shift_frames):
        """The sound that comes `shift_frames` early."""
        return world.window(self.utterance.audio, self.start + shift_frames / FORMAT.fps, FORMAT)


@pytest.fixture(scope="session")
def talkers():
    found, spoken = [], world.utterances("test", 4)
    for face in range(2):
        identity = identities.draw("test", 7100 + face)
        puppet = Puppet(identity, FORMAT.width, 2)
        for turn in range(2):
            utterance = spoken[2 * face + turn]
            start = world.start_times(utterance, FORMAT.seconds)[0]
            found.append(Talker(identity, puppet, utterance, start, 10 * face + turn))
    return found


@pytest.fixture(scope="session")
def clean(talkers):
    """Clean clips; their landmarks are found once for all tests."""
    return [talker.clip() for talker in talkers]


@pytest.fixture(scope="session")
def folders(tmp_path_factory, clean):
    """Folders `good` and `bad` of the same four clips: as they are, and with swapped sound."""
    root = tmp_path_factory.mktemp("sets")
    for number, clip in enumerate(clean):
        other = np.roll(clean[(number + 2) % 4].audio, 3000)
        for name, audio in (("good", clip.audio), ("bad", other)):
            path = root / name / f"face{number // 2}-{number % 2:04d}.mp4"
            media.write_video(path, clip.frames, clip.fps, audio)
    return root
