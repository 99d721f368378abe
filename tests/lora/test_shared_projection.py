"""Linears on one input share their down-projection; the backward pass keeps only what it needs."""

import pytest
import torch
from torch import Tensor, nn

from ft2.lora import (
    FusedLinear,
    SharedGate,
    apply_linear,
    apply_linears,
    expert_parameters,
    gate_slots,
    install_experts,
)


@pytest.fixture(params=["beside", "merged"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of the products, whatever the shapes would choose."""
    merge = request.param == "merged"
    monkeypatch.setattr("ft2.lora.fused.merging_pays", lambda *_: merge)
    return str(request.param)


class Attention(nn.Module):
    """q, k, v of different widths on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(6, 8), nn.Linear(6, 10, bias=False)
        self.to_v = nn.Linear(6, 4)

    def linears(self) -> tuple[nn.Module, ...]:
        return self.to_q, self.to_k, self.to_v


def adapted(num_experts: int = 3, seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    model = nn.ModuleDict({"blocks": nn.ModuleList([Attention()])}).double()
    install_experts(model, ["to_q", "to_k", "to_v"], num_experts, 2, 3.0)
    for p in expert_parameters(model):
        nn.init.normal_(p)
    return model["blocks"][0]


def naive(layer: FusedLinear, x: Tensor, gate: Tensor) -> Tensor:
    y = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    own = gate[:, layer.slot] if gate.ndim == 3 else gate
    for k in range(layer.num_experts):
        a, b = layer.lora_A[layer.rows(k)], layer.lora_B[:, layer.rows(k)]
        y = y + own[:, k, None, None] * 1.5 * (x @ a.T @ b.T)
    return y


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("train", ["experts", "gate", "both"])
def test_sharing_equals_a_naive_loop_in_output_and_gradients(slots: bool, train: str) -> None:
    attn = adapted()
    for p in expert_parameters(attn):
        p.requires_grad_(train != "gate")
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(*((4, 3, 3) if slots else (4, 3)), dtype=torch.float64)
    gate.requires_grad_(train != "experts")
    inputs = [x, gate, *expert_parameters(attn)]
    wanted = [v for v in inputs if v.requires_grad]
    ours = apply_linears(attn.linears(), x, gate)
    theirs = [naive(layer, x, gate) for layer in attn.linears()]
    weights = [torch.randn_like(y) for y in ours]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    sums = [sum((y * w).sum() for y, w in zip(ys, weights, strict=True)) for ys in (ours, theirs)]
    for a, b in zip(*(torch.autograd.grad(s, wanted) for s in sums), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_without_a_gate_and_for_plain_linears_it_is_the_base() -> None:
    attn = adapted()
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    for linear, y in zip(attn.linears(), apply_linears(attn.linears(), x, None), strict=True):
        assert torch.equal(y, nn.functional.linear(x, linear.weight, linear.bias))
    mixed = (attn.to_q, nn.Linear(6, 4).double())
    gate = torch.ones(4, 3, dtype=torch.float64)
    ours = apply_linears(mixed, x, gate)
    assert torch.equal(ours[0], apply_linear(attn.to_q, x, gate))
    assert torch.equal(ours[1], mixed[1](x))


def test_zero_3_weights_are_called_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed gathers a partitioned weight in its module's own forward hook."""
    attn = adapted()
    for linear in attn.linears():
        linear.weight.ds_id = 1
    called = []
    for linear in attn.linears():
        linear.register_forward_hook(lambda *_: called.append(1))
    apply_linears(attn.linears(), torch.randn(4, 5, 6).double(), torch.ones(4, 3).double())
    assert len(called) == 3


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    ("train", "kept"), [("gate", {(4, 5, 6 * 3)}), ("experts", {(4, 5, 6 * 3), (4, 5, 6)})]
)
def test_saved_tensors(train: str, kept: set[tuple[int, ...]]) -> None:
    """Gate training keeps the rank-space activations alone; expert training also the input."""
    attn = adapted()
    for p in expert_parameters(attn):
        p.requires_grad_(train == "experts")
    gate = torch.ones(4, 3, dtype=torch.float64, requires_grad=train == "gate")
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    saved: set[tuple[int, ...]] = set()

    def pack(t: Tensor) -> Tensor:
        if t.ndim == 3:
            saved.add(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        apply_linears(attn.linears(), x * 1, gate)
    assert saved == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_bf16_and_gives_fp32_gradients(dtype: torch.dtype) -> None:
    attn = adapted().float()
    for linear in attn.linears():
        linear.weight.data = linear.weight.data.to(dtype)
        if linear.bias is not None:
            linear.bias.data = linear.bias.data.to(dtype)
    x = torch.randn(4, 5, 6)
    gate = torch.rand(4, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = apply_linears(attn.linears(), x, gate)
    assert {y.dtype for y in ys} == {torch.bfloat16}
    sum(y.float().square().sum() for y in ys).backward()
    gradients = [p.grad for p in expert_parameters(attn)]
    assert {g.dtype for g in [*gradients, gate.grad]} == {torch.float32}
    exact = adapted()
    wanted = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    wanted.data.copy_(gate.data)
    double = [naive(layer, x.double(), wanted) for layer in exact.linears()]
    sum(y.square().sum() for y in double).backward()
    torch.testing.assert_close(gate.grad.double(), wanted.grad, rtol=0.05, atol=0.05 * 100)
    for ours, p in zip(gradients, expert_parameters(exact), strict=True):
        error = (ours.double() - p.grad).norm() / p.grad.norm()
        assert float(error) < 0.03


@pytest.mark.usefixtures("form")
def test_a_shared_gate_is_one_for_each_sample_with_equal_rows() -> None:
    """In outputs and gradients; the shared one's gradient is the sum of the rows'."""
    attn = adapted()
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    own = torch.randn(3, dtype=torch.float64, requires_grad=True)
    wanted = [x, own, *expert_parameters(attn)]
    found = []
    for gate in (SharedGate(own), own.expand(4, 3)):
        ys = apply_linears(attn.linears(), x, gate)
        found.append([*ys, *torch.autograd.grad(sum(y.square().sum() for y in ys), wanted)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_slots_are_named_and_the_same_in_every_block() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([Attention(), Attention()])})
    install_experts(model, ["to_q", "to_v"], 1, 2, 2.0)
    assert gate_slots(model) == ["to_q", "to_v"]
    assert [block.to_v.slot for block in model["blocks"]] == [1, 1]


def test_a_gate_of_the_wrong_shape_is_refused() -> None:
    attn = adapted()
    with pytest.raises(ValueError, match=r"gate is \(4, 2\)"):
        attn.to_q(torch.randn(4, 5, 6).double(), torch.ones(4, 2).double())
