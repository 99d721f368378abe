"""What the puppet world knows about a condition: a probe of the face, the mouth speech asks for.

Only ratings and judges may look at it, never a model's training on pairs.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from ft2.pairs import Condition
from ft2.puppet import identities, world
from ft2.puppet.curves import Curves, Style, from_speech
from ft2.puppet.probe import PuppetProbe

if TYPE_CHECKING:
    from ft2.config import ClipFormat


@dataclass(frozen=True)
class Truth:
    """What the puppet world knows about a condition."""

    probe: PuppetProbe
    driving: Curves


@cache
def _probe(identity_id: str, split: str, clip: "ClipFormat") -> PuppetProbe:
    seed = int(re.search(r"-v(\d+)$", identity_id)[1])  # type: ignore[index]
    return PuppetProbe.fit(identities.draw(split, seed), clip)


def truth_of(condition: Condition, clip: "ClipFormat") -> Truth:
    """Return the face's probe and the mouth curves that the speech of a condition asks for."""
    name, start_ms = condition.audio_id.split("@")
    spoken = {u.audio_id: u for u in world.utterances(condition.split)}[name]
    start = int(start_ms) / 1000
    driving = from_speech(spoken.phones, spoken.audio, clip.fps, clip.num_frames, 0, Style(), start)
    return Truth(_probe(condition.identity_id, condition.split, clip), driving)


def spoken_text(condition: Condition) -> str:
    """Return the sentence of a condition's speech (the clip may hold a part of it)."""
    name = condition.audio_id.split("@")[0]
    return {u.audio_id: u for u in world.utterances(condition.split)}[name].text
