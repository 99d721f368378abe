"""Weights stored in float8: the format, one rounding, the same numbers however they are read."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from ft2.lora import SharedGate, expert_parameters, install_experts
from ft2.wan.float8 import float8_gib, float8_linears, store_float8
from ft2.wan.memory import MemoryPlan, place, size_gib
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model, meta_dit


def rounded(weight):
    """The stored numbers by ml_dtypes, in float64: a power of two for each row, then e4m3."""
    rows = np.asarray(weight, np.float64)
    largest = np.abs(rows).max(1, keepdims=True)
    scale = np.ones_like(largest)
    for row in np.flatnonzero(largest[:, 0] > 0):
        scale[row] = 2.0**-100
        while largest[row] / scale[row] > 448:
            scale[row] *= 2
    return (rows / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_an_independent_cast(dtype):
    torch.manual_seed(0)
    weight = torch.randn(64, 48) * torch.logspace(-12, 6, 64)[:, None]
    weight[3], weight[4, 1:] = 0.0, 0.0
    weight[5, 0], weight[5, 1:] = 448.0, 1.0
    weight[6, 0], weight[6, 1:] = 449.0, 1.0
    block = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(48, 64)])})
    linear = block["blocks"][0]
    linear.weight.data = weight.to(dtype)
    linear.bias.data = linear.bias.data.to(dtype)
    given = linear.weight.detach().float().numpy()
    store_float8(block)
    read = linear.weight.float().numpy()
    assert np.array_equal(read, rounded(given))
    assert linear.weight.dtype == dtype
    assert np.abs(read - given).max() > 0
    small = np.abs(given).max(1, keepdims=True) * 2.0**-14
    assert (np.abs(read - given) <= np.maximum(np.abs(given) / 16, small)).all()
    x = torch.randn(5, 48).to(dtype)
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))
    stored = {p.dtype for name, p in linear.named_parameters() if name.endswith("original0")}
    assert stored == {torch.float8_e4m3fn}
    assert not any(p.requires_grad for n, p in linear.named_parameters() if "original" in n)


def velocities(model, count=2):
    """Velocities without experts, with a shared gate (merged) and with one for each sample."""
    rng = np.random.default_rng(0)
    portrait = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    audio = (rng.normal(size=model.clip.num_samples) * 0.1).astype(np.float32)
    cond = model.encode_condition(portrait, audio, "a person talks")
    x = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5])
    gate = torch.full((model.num_layers, 2), 0.7)
    with torch.no_grad():
        plain = model.velocity(x, sigma, cond)
        merged = model.velocity(x, sigma, cond, SharedGate(gate))
        beside = model.velocity(x, sigma, cond, gate[None])
    return [plain, merged, beside]


def with_experts():
    model = load_talking_model(WanSpec())
    install_experts(model.dit, ["attn1.to_q", "attn1.to_k", "attn1.to_v", "ffn.net.2"], 2, 4, 4.0)
    torch.manual_seed(0)
    for parameter in expert_parameters(model.dit):
        nn.init.normal_(parameter, std=0.1)
    return model


def test_the_transformer_computes_with_the_cast_weights_and_nothing_else_changes():
    plain, reference, ours = velocities(with_experts()), with_experts(), with_experts()
    names = [name for name, _ in float8_linears(ours.dit)]
    assert len(names) == 12 * ours.num_layers  # 4 + 6 of the attentions, 2 of the feed-forward
    assert not any("processor" in name or "lora" in name for name in names)
    for name in names:
        weight = reference.dit.get_submodule(name).weight
        weight.data = torch.from_numpy(rounded(weight.detach().numpy())).float()
    whole = size_gib(ours.dit)
    kept = {n: p for n, p in ours.dit.named_parameters() if n.removesuffix(".weight") not in names}
    store_float8(ours.dit)
    after = dict(ours.dit.named_parameters())
    assert all(after[name] is parameter for name, parameter in kept.items())
    for found, want, before in zip(velocities(ours), velocities(reference), plain, strict=True):
        assert torch.equal(found, want)
        assert not torch.equal(found, before)
        assert (found - before).norm() < 0.2 * before.norm()
    assert size_gib(ours.dit) < 0.6 * whole
    for placement in ("encoders", "blocks"):
        place(ours, "cpu", MemoryPlan(placement, False, 0.0))
        for found, want in zip(velocities(ours), velocities(reference), strict=True):
            assert torch.equal(found, want)


def test_the_plan_s_size_is_what_is_stored():
    model = load_talking_model(WanSpec())
    planned = float8_gib(meta_dit(WanSpec()), 4)
    store_float8(model.dit)
    stored = sum(p.numel() * p.element_size() for p in model.dit.parameters()) / 2**30
    assert stored == pytest.approx(planned, rel=1e-6)
