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
    scale = layer.rank_scale(OWN[None], 1)[0]
    found = merged_weight(layer.weight, scale, layer.lora_A, layer.lora_B)
    torch.testing.assert_close(found.double(), want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "merges", "least"),
    [([(5120, 5120)], 1, 2560), ([(5120, 13824)], 2, 2 * 5120 * 13824 / (5120 + 13824)),
     ([(24, 40), (24, 8)], 1, (24 * 40 + 24 * 8) / (24 + 40 + 24 + 8))],
)  # fmt: skip
def test_merging_pays_above_the_break_even(
    sizes: list[tuple[int, int]], merges: int, least: float
) -> None:
    """Against the count of multiplications of both forms for any number of ranks."""
    for tokens in (int(least) - 1, int(least) + 2):
        merge = sum(merges * width * out for width, out in sizes)
        beside = sum(tokens * (width + out) for width, out in sizes)
        assert merging_pays(sizes, tokens, merges, torch.float32) == (merge < beside)
        assert merging_pays(sizes, tokens, merges, torch.float32) == (tokens > least)
        assert not merging_pays(sizes, tokens, merges, torch.bfloat16)


@pytest.mark.parametrize(("tokens", "merges"), [(2, 0), (200, 3)])
def test_merged_equals_experts_beside_the_base(
    tokens: int, merges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, count = make(), 0
    before = layer.weight.clone()
    x = torch.randn(2, tokens, 24, generator=torch.Generator().manual_seed(1))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr("ft2.lora.fused.merging_pays", lambda *_: False)
        want = layer(x, OWN.expand(2, 3))

    def counted(*given: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return merged_weight(*given)

    monkeypatch.setattr("ft2.lora.product.merged_weight", counted)
    with torch.no_grad():
        got = apply_linear(layer, x, SharedGate(OWN))
        both = apply_linears((layer, make()), x, SharedGate(OWN))
    assert count == merges, "once for each linear"
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


def test_16_bits_are_merged_only_where_rounding_is_asked_for() -> None:
    sizes, tokens = [(64, 64)], 4096
    assert not merging_pays(sizes, tokens, 1, torch.bfloat16)
    assert merging_pays(sizes, tokens, 1, torch.bfloat16, rounded=True)
    assert not merging_pays(sizes, 8, 1, torch.bfloat16, rounded=True)
    layer = FusedLinear(torch.nn.Linear(64, 64, bias=False).bfloat16(), 2, 4, 4.0)
    torch.nn.init.normal_(layer.lora_B, std=0.02)
    x, own = torch.randn(1, tokens, 64).bfloat16(), torch.tensor([0.7, 1.2])
    weight = layer.weight.double()
    for k in range(2):
        weight = weight + own[k] * layer.lora_B[:, layer.rows(k)].double() @ (
            layer.lora_A[layer.rows(k)].double()
        )
    exact = x.double() @ weight.t()
    with torch.no_grad():
        beside = apply_linear(layer, x, SharedGate(own))
        rounded = apply_linear(layer, x, layer_gate(SharedGate(own[None], rounded=True), 0))
    assert not torch.equal(beside, rounded)
    for found in (beside, rounded):
        assert (found.double() - exact).norm() < 0.006 * exact.norm()
