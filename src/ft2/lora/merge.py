"""Experts merged into a weight, just in time, where that takes fewer operations.

Under one gate the experts act on every token through one weight::

    W_eff = W + B diag(gs) A

It is made anew for each use, always from the pristine W, in one scratch buffer that all linears
use in turn: no second copy of the network, and nothing that a later gate could find changed.

Only in 32 and 64 bits, unless rounding is asked for. W lies on bfloat16's grid, so an expert that
changes it by less than half a step of that grid is rounded away: at width 5120 a change of 0.1 % of
W keeps 0.52 of its effect, 0.3 % keeps 0.93, while beside the base (`ft2.lora.product`) it keeps
all (`benchmarks/tlpo.py`).
"""

import threading
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_scratch = threading.local()


class SharedGate(NamedTuple):
    """Expert weights of a whole batch, so that linears may merge the experts once for it.

    A tuple, because DeepSpeed looks for tensors in the arguments of modules.

    Attributes:
        weights: [layers, (slots,) K], or [(slots,) K] of one layer.
        rounded: Merge in 16 bits, too, and round small experts away.
    """

    weights: Tensor
    rounded: bool = False

    def layer(self, index: int) -> "SharedGate":
        """Return the gate of one layer."""
        return SharedGate(self.weights[index], self.rounded)


Gate = Tensor | SharedGate
"""What linears with experts are called with: weights for each sample, or shared ones."""


def layer_gate(gate: Gate | None, index: int) -> Gate | None:
    """Return what the linears of one layer get of a gate [B, layers, ...] or a shared one."""
    if gate is None:
        return None
    return gate.layer(index) if isinstance(gate, SharedGate) else gate[:, index]


def merging_pays(
    sizes: Iterable[tuple[int, int]],
    tokens: int,
    merges: int,
    dtype: torch.dtype,
    rounded: bool = False,
) -> bool:
    """Say whether experts are merged into a weight, from shapes alone.

    For R ranks a merge takes ``2 R in out`` operations and saves ``2 R (in + out)`` a token: x A^T
    and the up-projection where there are no gradients, in training the up-projection and its
    counterpart in dx (x A^T and dy B are needed then in either form). So it pays above
    ``merges in out / (in + out)`` tokens: 2,560 for one merge at 5120 x 5120.

    Args:
        sizes: (in, out) of the linears that are called together.
        tokens: Under one gate.
        merges: How often each weight is made: 1 forward, 2 forward and backward.
        dtype: What is computed in; not in 16 bits, where W + B diag(gs) A loses small experts.
        rounded: In 16 bits all the same.
    """
    if dtype not in (torch.float32, torch.float64) and not rounded:
        return False
    saved = spent = 0
    for width, out in sizes:
        saved += tokens * (width + out)
        spent += merges * width * out
    return saved > spent


def merged_weight(weight: Tensor, scale: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return ``W + B diag(gs) A``, [out, in], in this thread's scratch.

    The next call overwrites it.

    Args:
        weight: W, [out, in].
        scale: gs, [R].
        down: A, [R, in].
        up: B, [out, R].
    """
    place = _buffer(weight)
    torch.addmm(weight, up * scale.to(up), down, out=place)
    return place


def _buffer(like: Tensor) -> Tensor:
    """Return this thread's scratch of the shape, type and device of a weight."""
    buffers: dict[str, Tensor] = _scratch.__dict__
    key = f"{like.device} {like.dtype}"
    if key not in buffers or buffers[key].numel() < like.numel():
        buffers[key] = torch.empty(like.numel(), device=like.device, dtype=like.dtype)
    return buffers[key][: like.numel()].view(like.shape)
