"""Sampling: guidance without wasted passes, noise by key, batches that do not mix."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ft2.flow import shifted_sigmas
from ft2.generator.config import ExpertConfig, GenerateConfig, GuidanceConfig
from ft2.generator.sample import (
    expert_gate,
    generate_batch,
    guided_velocity,
    passes,
    sample_latents,
    start_noise,
)
from ft2.lora import expert_parameters, install_experts
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
    with torch.no_grad():
        unheard = model.velocity(x, sigma, cond, silent=True)
    assert torch.equal(unheard, n), "without the audio branch is with a scale of 0"


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
        experts = ("lip",)

        def gate(self, sigma: torch.Tensor) -> torch.Tensor:
            seen.append(round(float(sigma[0]), 3))
            return torch.ones(len(sigma), model.num_layers, 1)

    config = GenerateConfig(steps=2, shift=1.0, guidance=GuidanceConfig(prompt=1, audio=1))
    sample_latents(model, cond, [("a", 0), ("b", 0), ("c", 0)], config, Gates())
    assert seen == [1.0, 0.5]


class Three:
    """A policy of three experts with weights that differ by layer."""

    experts = ("motion", "lip", "quality")

    def gate(self, sigma: torch.Tensor) -> torch.Tensor:
        layers = torch.arange(2.0)[None, :, None]
        return (layers + torch.tensor([0.2, 0.3, 0.4])).expand(len(sigma), -1, -1)


def test_one_experts_strength_scales_its_weight_alone() -> None:
    gate = expert_gate(Three(), torch.full((4,), 0.5), ExpertConfig(lip=1.2))
    assert gate is not None
    want = torch.tensor([[0.2, 0.36, 0.4], [1.2, 1.56, 1.4]])
    torch.testing.assert_close(gate.weights, want)


def test_merged_policy_samples_what_the_experts_beside_the_base_do(trained: Path) -> None:
    model = load_talking_model(WanSpec(weights=str(trained / "model")))
    install_experts(model.dit, ["attn1.to_q", "ffn.net.0.proj", "attn2.to_v"], 3, 2, 2.0)
    torch.manual_seed(0)
    for parameter in expert_parameters(model.dit):
        torch.nn.init.normal_(parameter, std=0.2)
    cond = model.encode_conditions(
        np.full((2, 64, 64, 3), 90, np.uint8), [np.zeros(11520, np.float32)] * 2, ["", ""]
    )
    x = torch.randn(2, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    sigma = torch.full((2,), 0.5)
    with torch.no_grad():
        beside = model.velocity(x, sigma, cond, Three().gate(sigma))
        merged = model.velocity(x, sigma, cond, expert_gate(Three(), sigma, ExpertConfig()))
        base = model.velocity(x, sigma, cond)
    torch.testing.assert_close(merged, beside, atol=1e-5, rtol=1e-5)
    assert (merged - base).abs().max() > 1e-2


def test_carried_latents_stay_on_their_path_and_end_as_given(
    model: TalkingModel, cond: Conditioning
) -> None:
    one, carried = cond.select([0]), torch.randn(1, 16, 1, 8, 8)
    config = GenerateConfig(steps=4, shift=2.0, guidance=GuidanceConfig(prompt=1, audio=2))
    seen = []
    x = sample_latents(
        model, one, [("a", 0)], config, carried=carried, watch=lambda i, x: seen.append(x)
    )
    torch.testing.assert_close(x[:, :, :1], carried, atol=1e-5, rtol=1e-5)
    noise = start_noise("a", 0, model.latent_shape())[None, :, :1]
    for sigma, state in zip(shifted_sigmas(4, 2.0), seen, strict=False):
        want = (1 - sigma) * carried + sigma * noise
        torch.testing.assert_close(state[:, :, :1], want, atol=1e-5, rtol=1e-5)


def test_sampling_goes_on_from_any_step(model: TalkingModel, cond: Conditioning) -> None:
    one = cond.select([0])
    config = GenerateConfig(steps=4, shift=2.0, guidance=GuidanceConfig(prompt=1, audio=2))
    states: dict[int, torch.Tensor] = {}
    whole = sample_latents(
        model, one, [("a", 0)], config, watch=lambda i, x: states.__setitem__(i, x.clone())
    )
    again = sample_latents(model, one, [("a", 0)], config, start=(2, states[2]))
    assert torch.equal(again, whole)
