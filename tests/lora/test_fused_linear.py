"""FusedLinear against a per-expert loop, PEFT, the base, and finite differences."""

import peft
import pytest
import torch
from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.lora import (
    FusedLinear,
    SharedGate,
    apply_linear,
    expert_parameters,
    fused_linears,
    install_experts,
    repeat_gate,
)


@pytest.fixture(params=["beside", "merged"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of the products, whatever the shapes would choose."""
    merge = request.param == "merged"
    monkeypatch.setattr("ft2.lora.fused.merging_pays", lambda *_: merge)
    return str(request.param)


class Block(nn.Module):
    """Two linears with names like a DiT block's."""

    def __init__(self, dim: int = 6, hidden: int = 10) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return apply_linear(self.out, torch.tanh(apply_linear(self.to_q, x, gate)), gate)


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in expert_parameters(module):
            parameter.copy_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def fused(num_experts: int = 3, rank: int = 2, alpha: float = 5.0) -> FusedLinear:
    torch.manual_seed(0)
    layer = FusedLinear(nn.Linear(6, 10).double(), num_experts, rank, alpha)
    randomise(layer)
    return layer


def loop(layer: FusedLinear, x: Tensor, gate: Tensor) -> Tensor:
    """W x + b + sum_k gate_k alpha/r B_k A_k x, sample by sample."""
    outputs = []
    for sample, weights in zip(x, gate, strict=True):
        y = sample @ layer.weight.T
        y = y if layer.bias is None else y + layer.bias
        for k in range(layer.num_experts):
            a = layer.lora_A[k * layer.rank : (k + 1) * layer.rank]
            b = layer.lora_B[:, k * layer.rank : (k + 1) * layer.rank]
            y = y + weights[k] * (layer.alpha / layer.rank) * (sample @ (b @ a).T)
        outputs.append(y)
    return torch.stack(outputs)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("shape", [(4, 6), (4, 7, 6), (4, 3, 5, 6)])
def test_equals_the_per_expert_loop_in_output_and_gradients(
    shape: tuple[int, ...],
) -> None:
    layer = fused()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    inputs = [x, gate, layer.lora_A, layer.lora_B]
    ours, theirs = layer(x, gate), loop(layer, x, gate)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad((ours * weight).sum(), inputs),
                    torch.autograd.grad((theirs * weight).sum(), inputs), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("form")
def test_gradcheck() -> None:
    layer = fused(num_experts=2)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, gate: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"lora_A": a, "lora_B": b}, (x, gate))

    assert torch.autograd.gradcheck(call, (x, gate, layer.lora_A, layer.lora_B))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [5, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_none_and_zero_b_are_bitwise_the_base(
    dtype: torch.dtype, tokens: int, bias: bool
) -> None:
    """In float32 500 tokens are merged."""
    torch.manual_seed(0)
    base = nn.Linear(6, 10, bias=bias).to(dtype)
    layer = FusedLinear(base, 3, 4, 4.0)
    x = torch.randn(2, tokens, 6).to(dtype)
    assert layer.lora_A.dtype == torch.float32
    assert torch.equal(layer(x, torch.rand(2, 3)), base(x))
    assert torch.equal(layer(x, SharedGate(torch.rand(3))), base(x))
    randomise(layer)
    assert torch.equal(layer(x), base(x))
    assert not torch.equal(layer(x, torch.rand(2, 3)), base(x))


@pytest.mark.usefixtures("form")
def test_gate_rows_reach_their_own_samples_only() -> None:
    layer = fused()
    x = torch.randn(1, 4, 6, dtype=torch.float64).repeat(2, 1, 1)
    gate = torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    y = layer(x, gate)
    torch.testing.assert_close(y[0], layer(x)[0], rtol=0, atol=1e-14)
    assert not torch.allclose(y[1], y[0])


def test_frames_folded_into_the_batch_need_repeated_rows() -> None:
    layer = fused()
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64)
    gate = torch.randn(2, 3, dtype=torch.float64)
    folded = layer(x.reshape(10, 3, 6), repeat_gate(gate, 5))
    torch.testing.assert_close(folded.reshape(2, 5, 3, 10), layer(x, gate), rtol=0, atol=1e-13)
    assert repeat_gate(None, 5) is None
    with pytest.raises(ValueError, match="gate is"):
        layer(x.reshape(10, 3, 6), gate)


def peft_twin(weights: list[float]) -> tuple[Block, peft.PeftModel, Tensor]:
    """The same network fused by us and with three active adapters by PEFT."""
    torch.manual_seed(1)
    plain, ours = Block().double(), Block().double()
    ours.load_state_dict(plain.state_dict())
    install_experts(ours, ["to_q", "out"], 3, rank=2, alpha=3.0)
    randomise(ours)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "out"])
    theirs = peft.get_peft_model(plain, config, adapter_name="0")
    for k in (1, 2):
        theirs.add_adapter(str(k), config)
    for name, layer in fused_linears(ours):
        twin = theirs.base_model.model.get_submodule(name)
        for k in range(3):
            rows = layer.rows(k)
            twin.lora_A[str(k)].weight.data = layer.lora_A.data[rows].clone()
            twin.lora_B[str(k)].weight.data = layer.lora_B.data[:, rows].clone()
            twin.scaling[str(k)] = 1.5 * weights[k]
    gate = torch.tensor([weights], dtype=torch.float64).repeat(2, 1)
    return ours, theirs, gate


@pytest.mark.usefixtures("form")
def test_equals_peft_with_three_active_adapters() -> None:
    ours, theirs, gate = peft_twin([0.3, -0.7, 1.1])
    theirs.base_model.set_adapter(["0", "1", "2"])
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x, gate), theirs(x), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("form")
def test_equals_peft_cat_merge() -> None:
    weights = [0.3, 0.7, 1.1]
    ours, theirs, gate = peft_twin([1.0, 1.0, 1.0])
    theirs.add_weighted_adapter(["0", "1", "2"], weights, "merged", combination_type="cat")
    theirs.set_adapter("merged")
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    expected = ours(x, gate * torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(expected, theirs(x), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("form")
def test_gradient_under_checkpointing_with_two_draws_in_one_graph() -> None:
    """A gate kept as an attribute fails this: recomputation would read the last one."""
    block = Block().double()
    install_experts(block, ["to_q", "out"], 3, 2, 2.0)
    randomise(block)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    theta = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def gradient(checkpointed: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for draw in (0.5, 2.0):
            gate = torch.softmax(theta * draw, 0).repeat(2, 1)
            if checkpointed:
                y = torch.utils.checkpoint.checkpoint(block, x, gate, use_reentrant=False)
            else:
                y = block(x, gate)
            total = total + (y**2).mean()
        return torch.autograd.grad(total, theta)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=0, atol=1e-14)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_and_without_gradients_the_output_has_the_same_bits(
    dtype: torch.dtype, frozen: bool
) -> None:
    """A reference runs without gradients, its policy with them: step 0 is ln 2 to the bit."""
    torch.manual_seed(0)
    layer = FusedLinear(nn.Linear(24, 40).to(dtype), 3, 4, 4.0)
    randomise(layer)
    layer.requires_grad_(not frozen)
    for tokens in (5, 31, 400):
        x = torch.randn(3, tokens, 24, requires_grad=True).to(dtype)
        for gate in (torch.rand(3, 3, requires_grad=True), SharedGate(torch.rand(3))):
            with torch.no_grad():
                reference = layer(x, gate)
            assert torch.equal(layer(x, gate), reference)


def test_sixteen_bits_keep_an_expert_that_moves_the_weight_by_a_thousandth() -> None:
    """Merged, or added to a base that is rounded already, half of it would be lost."""
    torch.manual_seed(0)
    layer = FusedLinear(nn.Linear(512, 512, bias=False).bfloat16(), 3, 8, 8.0)
    randomise(layer)
    delta = layer.lora_B @ layer.lora_A
    layer.lora_B.data *= 1e-3 * layer.weight.float().std() / delta.std()
    x = torch.randn(1, 800, 512).bfloat16()
    with torch.no_grad():
        part = (x.double() @ (layer.lora_B.double() @ layer.lora_A.double()).t()).flatten()
        found = (layer(x, SharedGate(torch.ones(3))).double() - layer(x).double()).flatten()
        rounded = (layer(x).double().flatten() + part).bfloat16().double()
    kept = float(found @ part / (part @ part))
    assert kept == pytest.approx(1, abs=0.02)
    assert float((rounded - layer(x).double().flatten()) @ part / (part @ part)) < 0.7


def test_install_counts_freezes_and_keeps_names() -> None:
    block = nn.ModuleDict({"a": Block(), "b": Block()})
    names = set(block.state_dict())
    assert install_experts(block, ["to_q"], 2, 4, 4.0) == 2
    assert names < set(block.state_dict())
    trainable = {n for n, p in block.named_parameters() if p.requires_grad}
    assert trainable == {f"{x}.to_q.lora_{m}" for x in "ab" for m in "AB"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["to_q", "ffn.net.0.proj"], "ffn.net.0.proj"),
        ([], "none given"),
        (["q"], "match no module"),
    ],
)
def test_targets_that_match_nothing_are_errors(targets: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        install_experts(Block(), targets, 1, 2, 2.0)


def test_a_second_install_is_an_error() -> None:
    block = Block()
    install_experts(block, ["to_q"], 1, 2, 2.0)
    with pytest.raises(UsageError, match="already"):
        install_experts(block, ["out"], 1, 2, 2.0)
