"""Sums that tell whether frozen weights are still the same, also where ranks hold parts of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ft2.errors import RunError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number."""

_PIECE = 1 << 24
"""Numbers that are added at a time: a copy of them is made, as 64-bit integers."""


class FrozenWeights:
    """The weights of a network that are not trained, as they were when this was made.

    Each has a sum of all its bits, read as integers: another value in one place is another sum.
    Parts have sums that add up, so that ZeRO-3's parts are looked at where they lie.
    """

    def __init__(self, network: nn.Module, trainable: Mapping[str, nn.Parameter]) -> None:
        """Take the sums of what is not among ``trainable``; make it before the engine."""
        trained = {id(parameter) for parameter in trainable.values()}
        self._weights = {n: p for n, p in network.named_parameters() if id(p) not in trained}
        self._sums = torch.tensor([bit_sum(p) for p in self._weights.values()])

    def check(self) -> None:
        """Refuse to go on beside frozen weights that changed; every rank calls it.

        Raises:
            RunError: A weight has other bits than at first, on this rank or another one.
        """
        bad = self._changed().int()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            bad = _over_ranks(bad, torch.distributed.ReduceOp.MAX)
        names = [name for name, one in zip(self._weights, bad.tolist(), strict=True) if one]
        if names:
            raise RunError(
                f"{len(names)} frozen weights changed in training, such as {names[0]}",
                "nothing was saved: this is an error of the program or of its engine",
            )

    def _changed(self) -> Tensor:
        """Return which weights have another sum, bool [weights]."""
        weights = list(self._weights.values())
        split = [hasattr(p, "ds_tensor") for p in weights]
        bad = torch.zeros(len(weights), dtype=torch.bool)
        if any(split):
            own = [bit_sum(_own_part(p)) if s else 0 for p, s in zip(weights, split, strict=True)]
            parts = _over_ranks(torch.tensor(own), torch.distributed.ReduceOp.SUM)
            bad = torch.tensor(split) & (parts != self._sums)
        whole = [not s or _is_gathered(p) for p, s in zip(weights, split, strict=True)]
        for place, (parameter, seen) in enumerate(zip(weights, whole, strict=True)):
            if seen:
                bad[place] |= bit_sum(parameter) != int(self._sums[place])
        return bad


def bit_sum(value: Tensor) -> int:
    """Return the sum of a tensor's numbers with their bits read as integers, modulo 2^64, signed.

    Args:
        value: Of any shape and number format.
    """
    flat = value.detach().reshape(-1)
    if not flat.numel():
        return 0
    bits = flat.view(_INTEGERS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for piece in bits.split(_PIECE):
        total += piece.sum(dtype=torch.int64)
    return int(total)


def _own_part(parameter: Any) -> Tensor:
    """Return this rank's part of a weight that ZeRO-3 split, without the last part's padding."""
    part: Tensor = parameter.ds_tensor
    start = torch.distributed.get_rank() * part.numel()
    held = min(max(parameter.ds_numel - start, 0), part.numel())
    return part.reshape(-1)[:held]


def _is_gathered(parameter: Any) -> bool:
    """Say whether a split weight is whole on this rank, too: ZeRO-3 keeps small ones so."""
    return bool(parameter.ds_status.name == "AVAILABLE")


def _over_ranks(values: Tensor, operation: Any) -> Tensor:
    kind = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    moved = values.to(kind)
    torch.distributed.all_reduce(moved, op=operation)
    return moved.cpu()
