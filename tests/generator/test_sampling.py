"""Sampling: guidance without wasted passes, noise by key, batches that do not mix."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ft2.generator.config import GenerateConfig, GuidanceConfig
from ft2.generator.sample import (
    generate_batch,
    guided_velocity,
    passes,
    sample_latents,
    start_noise,
)
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model


@pytest.fixture(scope="module")
def model(trained: Path) -> TalkingModel:
    return load_talking_model(WanSpec(weights=str(trained / "model")))


@pytest.fixture(scope="module")
def cond(model: TalkingModel) -> Conditioning:
    rng = np.random.default_rng(0)
    portraits = rng.integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    audios = [rng.normal(size=11520).astype(np.float32) * 0.1 for _ in range(3)]
    return model.encode_conditions(portraits, audios, ["one", "two", ""])


@pytest.mark.parametrize(
    ("prompt", "audio", "count"),
    [(1.0, 1.0, 1), (5.0, 5.0, 2), (1.0, 4.0, 2), (5.0, 4.0, 3), (0.0, 0.0, 1)],
)
def test_passes_with_zero_coefficient_are_skipped(prompt: float, audio: float, count: int) -> None:
    weights = passes(GuidanceConfig(prompt=prompt, audio=audio), 0.0)
    assert len(weights) == count
    assert sum(weights.values()) == pytest.approx(1.0)


def test_guided_velocity_is_the_published_combination(
    model: TalkingModel, cond: Conditioning
) -> None:
    x = torch.randn(3, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    sigma = torch.full((3,), 0.6)
    negative = model.encode_prompts(["bad"])
    silent = torch.zeros(3)
    with torch.no_grad():
        u = model.velocity(x, sigma, cond.with_text(negative), audio_scale=silent)
        n = model.velocity(x, sigma, cond, audio_scale=silent)
        c = model.velocity(x, sigma, cond)
        weights = passes(GuidanceConfig(prompt=3.0, audio=2.0), 0.0)
        got = guided_velocity(model, x, sigma, cond, negative, weights, 1.0, None)
    torch.testing.assert_close(got, u + 3 * (n - u) + 2 * (c - n), atol=1e-4, rtol=1e-4)
    assert (c - n).abs().max() > 0


def test_audio_guidance_can_end_early() -> None:
    guidance = GuidanceConfig(prompt=5.0, audio=4.0, audio_until=0.7)
    assert passes(guidance, 0.6)["silent"] == pytest.approx(1.0)
    assert passes(guidance, 0.7) == pytest.approx({"negative": -4.0, "full": 5.0})


def test_noise_is_a_function_of_key_and_seed() -> None:
    assert torch.equal(start_noise("a", 1, (3, 4)), start_noise("a", 1, (3, 4)))
    assert not torch.equal(start_noise("a", 1, (3, 4)), start_noise("a", 2, (3, 4)))
    assert not torch.equal(start_noise("a", 1, (3, 4)), start_noise("b", 1, (3, 4)))


def test_a_clip_does_not_depend_on_its_batch(model: TalkingModel, cond: Conditioning) -> None:
    config = GenerateConfig(
        steps=3, shift=2.0, guidance=GuidanceConfig(prompt=1, audio=1), batch_size=4
    )
    together = generate_batch(model, cond, [("a", 0), ("b", 0), ("c", 0)], config)
    alone = generate_batch(model, cond.select([1]), [("b", 0)], config)
    assert together.shape == (3, 9, 64, 64, 3)
    assert np.array_equal(together[1], alone[0])
    other = generate_batch(model, cond.select([1]), [("b", 1)], config)
    assert not np.array_equal(other, alone)


def test_sampling_ends_where_the_last_step_leads(model: TalkingModel, cond: Conditioning) -> None:
    config = GenerateConfig(steps=1, shift=1.0, guidance=GuidanceConfig(prompt=1, audio=1))
    keys = [("a", 0), ("b", 0), ("c", 0)]
    x = sample_latents(model, cond, keys, config)
    noise = torch.stack([start_noise(k, s, model.latent_shape()) for k, s in keys])
    with torch.no_grad():
        want = noise - model.velocity(noise, torch.ones(3), cond)
    torch.testing.assert_close(x, want)


def test_a_gate_reaches_every_layer(model: TalkingModel, cond: Conditioning) -> None:
    seen = []

    class Gates:
        def gate(self, sigma: torch.Tensor) -> torch.Tensor:
            seen.append(round(float(sigma[0]), 3))
            return torch.ones(len(sigma), model.num_layers, 1)

    config = GenerateConfig(steps=2, shift=1.0, guidance=GuidanceConfig(prompt=1, audio=1))
    sample_latents(model, cond, [("a", 0), ("b", 0), ("c", 0)], config, Gates())
    assert seen == [1.0, 0.5]
