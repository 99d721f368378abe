"""Experts merged just in time: equal to experts beside the base, and the base stays pristine."""

import pytest
import torch
from torch import nn

from ft2.lora import FusedLinear, SharedGate, apply_linear, apply_linears, layer_gate
from ft2.lora.merge import merged_weight, merging_pays


def make(width: int = 24, out: int = 40, dtype: torch.dtype = torch.float32) -> FusedLinear:
    torch.manual_seed(0)
    layer = FusedLinear(nn.Linear(width, out).to(dtype), num_experts=3, rank=4, alpha=6.0)
    nn.init.normal_(layer.lora_B, std=0.3)
    return layer.requires_grad_(False)


OWN = torch.tensor([0.7, -0.2, 1.3])


def test_a_merged_weight_is_the_sum_over_experts() -> None:
    layer = make()
    want = layer.weight.double().clone()
    for expert, weight in enumerate(OWN.tolist()):
        rows = layer.rows(expert)
        delta = layer.lora_B[:, rows].double() @ layer.lora_A[rows].double()
        want += weight * 6.0 / 4 * delta
    torch.testing.assert_close(merged_weight(layer, OWN).double(), want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tokens", [2, 200])
def test_merged_equals_experts_beside_the_base(tokens: int) -> None:
    layer = make()
    assert merging_pays(layer, 2 * tokens) == (tokens == 200)
    before = layer.weight.clone()
    x = torch.randn(2, tokens, 24, generator=torch.Generator().manual_seed(1))
    want = layer(x, OWN.expand(2, 3))
    with torch.no_grad():
        got = apply_linear(layer, x, SharedGate(OWN))
        both = apply_linears((layer, make()), x, SharedGate(OWN))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[0], want, atol=1e-5, rtol=1e-5)
    assert torch.equal(layer.weight, before), "the base is never written to"


def test_every_slot_and_layer_gets_its_own_weights() -> None:
    table = torch.rand(5, 2, 3)
    layer = make()
    layer.slot = 1
    x = torch.randn(1, 300, 24)
    with torch.no_grad():
        got = apply_linear(layer, x, layer_gate(SharedGate(table), 3))
    torch.testing.assert_close(got, layer(x, table[3, 1][None]), atol=1e-5, rtol=1e-5)
    assert torch.equal(layer_gate(table[None], 3)[0], table[3])
    assert layer_gate(None, 3) is None


def test_a_linear_without_experts_and_one_with_gradients() -> None:
    plain = nn.Linear(24, 40)
    x = torch.randn(1, 300, 24)
    with torch.no_grad():
        assert torch.equal(apply_linear(plain, x, SharedGate(OWN)), plain(x))
    x.requires_grad_()
    layer = make()
    (grad,) = torch.autograd.grad(apply_linear(layer, x, SharedGate(OWN)).sum(), x)
    (want,) = torch.autograd.grad(layer(x, OWN[None]).sum(), x)
    torch.testing.assert_close(grad, want)


def test_bfloat16_loses_no_more_than_a_rounding_of_the_weight() -> None:
    """At width 512: merged bf16 errs about as much as the base in bf16 alone."""
    layer, exact = make(512, 512, torch.bfloat16), make(512, 512)
    exact.weight.data = layer.weight.float()
    exact.bias.data = layer.bias.float()
    x = torch.randn(1, 600, 512, generator=torch.Generator().manual_seed(2)).bfloat16()
    want = exact(x.float(), OWN[None])
    with torch.no_grad():
        merged = apply_linear(layer, x, SharedGate(OWN)).float()
    beside = layer(x, OWN[None]).float()
    errors = [((y - want).norm() / want.norm()).item() for y in (merged, beside)]
    assert errors[0] < 5e-3
    assert errors[0] < 2 * errors[1]
