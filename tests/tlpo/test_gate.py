"""The fusion gate: form, start, precision, timestep features."""

import pytest
import torch
from tlpo_toys import toy_model

from ft2.tlpo.gate import (
    FusionGate,
    constant_gate,
    features_dim,
    share_entropy,
    timestep_features,
)


@pytest.mark.parametrize(("bias", "weight"), [(0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)])
def test_starts_equal_everywhere(bias: float, weight: float) -> None:
    gate = FusionGate(4, 3, 10, bias)
    out = gate(torch.randn(5, 10))
    assert out.shape == (5, 4, 3)
    torch.testing.assert_close(out, torch.full_like(out, weight))


def test_form_is_softmax_of_projection_then_bias() -> None:
    gate = FusionGate(2, 3, 5).double()
    with torch.no_grad():
        gate.weight.copy_(torch.randn_like(gate.weight))
        gate.bias.copy_(torch.randn_like(gate.bias))
    tau = torch.randn(4, 5, dtype=torch.float64)
    out = gate(tau)
    for b in range(4):
        for layer in range(2):
            exponent = (gate.weight[layer] @ tau[b]).exp()
            expected = exponent / exponent.sum() + gate.bias[layer]
            torch.testing.assert_close(out[b, layer], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(out.sum(-1), 1 + gate.bias.sum(-1).expand(4, 2))


def test_zero_weight_is_not_a_dead_start() -> None:
    gate = FusionGate(2, 3, 5)
    gate(torch.randn(4, 5))[..., 0].sum().backward()
    assert gate.weight.grad is not None
    assert gate.weight.grad.abs().max() > 0


def test_stays_in_float32_under_autocast() -> None:
    gate = FusionGate(2, 3, 64)
    with torch.no_grad():
        gate.weight.copy_(torch.randn_like(gate.weight))
    tau = torch.randn(4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gate(tau)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, gate(tau))


@pytest.mark.parametrize(("kind", "width"), [("embedding", 24), ("sinusoid", 32)])
def test_features_are_the_transformers_own(kind: str, width: int) -> None:
    model = toy_model()
    sigma = torch.tensor([0.0, 0.3, 1.0])
    feature = timestep_features(model.dit, sigma, kind)
    assert feature.shape == (3, width)
    assert features_dim(model.dit, kind) == width
    embedder = model.dit.condition_embedder
    wave = embedder.timesteps_proj(1000 * sigma)
    expected = wave if kind == "sinusoid" else embedder.time_embedder(wave)
    torch.testing.assert_close(feature, expected, rtol=0, atol=0)
    assert not feature.requires_grad


def test_features_match_what_the_blocks_see() -> None:
    """`embedding` is the `temb` that the transformer's own forward computes."""
    model = toy_model()
    sigma = torch.tensor([0.25, 0.75])
    temb = model.dit.condition_embedder(1000 * sigma, torch.zeros(2, 3, 16), torch.zeros(2, 3, 16))[
        0
    ]
    torch.testing.assert_close(timestep_features(model.dit, sigma), temb)


def test_constant_gate_and_entropy() -> None:
    out = constant_gate(2, 3, [0.5, 1.0])
    assert out.tolist() == [[[0.5, 1.0]] * 3] * 2
    gate = FusionGate(2, 3, 4, 0.5)
    assert share_entropy(gate.shares(torch.randn(6, 4))) == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        gate.weight[:, 0] = 100
    assert share_entropy(gate.shares(torch.ones(6, 4))) == pytest.approx(0.0, abs=1e-5)
