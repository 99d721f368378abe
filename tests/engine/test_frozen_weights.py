"""Frozen weights are looked at bit by bit, in the parts that ZeRO-3 makes of them, too."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ft2.engine import FrozenWeights, frozen
from ft2.engine.frozen import bit_sum
from ft2.errors import RunError

FORMATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8]


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_sum_is_that_of_the_bits_as_integers(dtype: torch.dtype) -> None:
    values = (100 * torch.randn(7, 33, generator=torch.Generator().manual_seed(3))).to(dtype)
    width = values.element_size()
    kind = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[width]
    bits = np.frombuffer(values.flatten().view(torch.uint8).numpy().tobytes(), kind)
    exact = sum(int(bit) for bit in bits)
    assert bit_sum(values) == (exact + 2**63) % 2**64 - 2**63
    assert bit_sum(values.t()) == bit_sum(values)
    assert bit_sum(torch.empty(0)) == 0


def test_parts_add_up_and_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1001)
    whole = bit_sum(values)
    assert bit_sum(values[:400]) + bit_sum(values[400:]) == whole
    monkeypatch.setattr(frozen, "_PIECE", 64)
    assert bit_sum(values) == whole


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept, self.trained = nn.Linear(30, 40), nn.Linear(4, 5)


def test_one_bit_of_one_weight_is_seen_and_trained_ones_are_free() -> None:
    net = Net()
    with torch.no_grad():
        net.kept.bias[7] = 0.0
    weights = FrozenWeights(net, {"t": net.trained.weight, "b": net.trained.bias})
    with torch.no_grad():
        net.trained.weight.mul_(2)
    weights.check()
    with torch.no_grad():
        net.kept.bias[7] = -0.0  # equal as a number
    with pytest.raises(RunError, match=r"1 frozen weights changed .* kept\.bias"):
        weights.check()
    with torch.no_grad():
        net.kept.bias[7] = 0.0
        net.kept.weight[3, 4] = torch.nextafter(net.kept.weight[3, 4], torch.tensor(9.0))
    with pytest.raises(RunError, match=r"kept\.weight"):
        weights.check()


@pytest.mark.parametrize(("rank", "seen"), [(0, True), (1, True), (2, True), (3, False)])
def test_parts_of_every_rank_count_and_padding_does_not(
    monkeypatch: pytest.MonkeyPatch, rank: int, seen: bool
) -> None:
    """Ten numbers on four ranks: 3 + 3 + 3 + 1, the last part filled up with anything."""
    whole = torch.randn(10)
    net = nn.Module()
    net.register_parameter("w", nn.Parameter(whole.clone(), requires_grad=False))
    weights = FrozenWeights(net, {})
    filled = torch.cat((whole, torch.randn(2))).split(3)
    net.w.data = torch.empty(0)
    net.w.ds_numel, net.w.ds_status = 10, SimpleNamespace(name="NOT_AVAILABLE")
    parts = [part.clone() for part in filled]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    def check() -> None:
        sums = []
        for place in range(4):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda place=place: place)
            net.w.ds_tensor = parts[place]
            sums.append(bit_sum(frozen._own_part(net.w)))

        def over_ranks(values: torch.Tensor, operation: object) -> torch.Tensor:
            summed = operation == torch.distributed.ReduceOp.SUM
            return torch.tensor([sum(sums)]) if summed else values

        monkeypatch.setattr(frozen, "_over_ranks", over_ranks)
        weights.check()

    check()
    parts[rank][-1] += 1  # of the last rank: padding
    if not seen:
        check()
        parts[rank][0] += 1
    with pytest.raises(RunError, match="frozen weights changed"):
        check()
