"""The shipped motion branch: omega moves the head of an unseen face, by a probe of that face."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ft2.config import ClipFormat, load_config
from ft2.generator.config import GenerateConfig
from ft2.generator.sample import generate_batch
from ft2.puppet import identities, world
from ft2.puppet.probe import PuppetProbe
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model


@pytest.mark.slow
def test_a_head_moves_more_with_omega() -> None:
    model = load_talking_model(WanSpec(branches=("motion",)))
    seed, clip = 10_777_000, ClipFormat()
    clips = world.random_clips("dev", seed, 4, clip, 0.0)
    probe = PuppetProbe.fit(identities.draw("dev", seed), clip)
    cond = model.encode_conditions(
        np.stack([c.frames[0] for c in clips]), [c.audio for c in clips], [c.caption for c in clips]
    )
    config = load_config(GenerateConfig, "nano/generate", ["batch_size=4", "guidance.audio=1.0"])
    keys = [(c.audio_id, 0) for c in clips]
    moved = []
    for omega in (0.1, 1.0):
        assert cond.motion is not None
        given = replace(cond, motion=torch.full_like(cond.motion, omega))
        made = generate_batch(model, given, keys, config)
        moved.append(np.array([probe.track(frames).pose[:, :2].var(0).sum() for frames in made]))
    assert (moved[1] > moved[0]).all()
    assert moved[1].mean() > 1.2 * moved[0].mean()
