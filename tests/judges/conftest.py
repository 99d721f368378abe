import numpy as np
import pytest

from ft2.config import ClipFormat
from ft2.puppet import identities, world
from ft2.puppet.probe import PuppetProbe
from ft2.puppet.render import Puppet


class Scene:
    """One face that no training sees, its probe, and a way to make clips of it."""

    def __init__(self):
        self.clip = ClipFormat()
        self.identity = identities.load(identities.names("test")[0])
        self.probe = PuppetProbe.fit(self.identity, self.clip, seed=1)
        self.puppet = Puppet(self.identity, self.clip.width)
        self.spoken = world.utterances("test", 6)

    def make(self, number, defects=()):
        utterance = self.spoken[number % len(self.spoken)]
        starts = world.start_times(utterance, self.clip.seconds)
        start = starts[(7 * number) % len(starts)]
        return world.make_clip(
            self.identity, utterance, start, number, defects, self.clip, puppet=self.puppet
        )


@pytest.fixture(scope="session")
def scene():
    return Scene()


@pytest.fixture(scope="session")
def clean_clips(scene):
    return [scene.make(number) for number in range(6)]


def mean_of(judgements, name):
    return float(np.mean([getattr(found, name) for found in judgements]))
