"""The shipped branches move an unseen face, by a probe of it: omega, and whose face is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ft2.config import ClipFormat, load_config
from ft2.generator.config import GenerateConfig
from ft2.generator.sample import generate_batch
from ft2.puppet import identities, world
from ft2.puppet.curves import SETTLING
from ft2.puppet.manner import held_pitch
from ft2.puppet.probe import PuppetProbe
from ft2.wan.model import TalkingModel
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

PERSON = 10_777_000

LOW, HIGH = (14, 19, 45, 17), (11, 0, 42, 23)
"""People of the split dev, counted from 10,940,000, who hold their heads lowest and highest."""


def poses(
    model: TalkingModel, count: int, keys: list[str], changed: list[dict[str, Tensor]]
) -> list[NDArray[np.float32]]:
    """Return the tracked head [count, F, 5] of clips of one person, for each changed condition."""
    clip = ClipFormat()
    clips = world.random_clips("dev", PERSON, count, clip, 0.0)
    probe = PuppetProbe.fit(identities.draw("dev", PERSON), clip)
    cond = model.encode_conditions(
        np.stack([c.frames[0] for c in clips]), [c.audio for c in clips], [c.caption for c in clips]
    )
    config = load_config(GenerateConfig, "nano/generate", [f"batch_size={count}", *keys])
    names = [(c.audio_id, 0) for c in clips]
    made = [generate_batch(model, replace(cond, **given), names, config) for given in changed]
    return [np.stack([probe.track(frames).pose for frames in each]) for each in made]


@pytest.mark.slow
def test_a_head_moves_more_with_omega() -> None:
    model = load_talking_model(WanSpec(branches=("motion",)))
    levels = [{"motion": torch.full((4, 2), omega)} for omega in (0.1, 1.0)]
    found = poses(model, 4, ["guidance.audio=1.0"], levels)
    moved = [pose[..., :2].var(1).sum(1) for pose in found]
    assert (moved[1] > moved[0]).all()
    assert moved[1].mean() > 1.2 * moved[0].mean()


def test_a_head_is_held_as_the_person_holds_it_whose_face_embedding_is_given() -> None:
    """All is equal but the embedding: of people with broad faces, who hold it low, or narrow."""
    model = load_talking_model(WanSpec(branches=("identity", "motion")))
    assert model.face is not None
    groups = [[identities.draw("dev", 10_940_000 + n) for n in part] for part in (LOW, HIGH)]
    assert all(held_pitch(person) > 0.05 for person in groups[0])
    assert all(held_pitch(person) < -0.05 for person in groups[1])
    portraits = [torch.from_numpy(np.stack([p.portrait(64) for p in g])) for g in groups]
    embeddings = [{"identity": model.face.embed(part)} for part in portraits]
    low, high = poses(model, 4, ["guidance.audio=1.0", "steps=10"], embeddings)
    settled = round(SETTLING * ClipFormat().fps)
    lower = low[:, settled:, 4].mean(1) - high[:, settled:, 4].mean(1)
    assert (lower > 0.0).all()
    assert lower.mean() > 0.01
