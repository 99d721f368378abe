"""Experts merged into the weights, just in time, where all samples share one gate.

At one noise level the gate is the same for every token, so the experts act through one weight::

    W_eff = W + B diag(gs) A

It is made anew for each call, always from the pristine W, in one scratch buffer that all linears
use in turn: no second copy of the network, and nothing that a later gate could find changed.
Making it costs ``2 K r in out`` operations, experts beside the base ``2 T K r (in + out)`` for T
tokens, so it pays above ``T = in out / (in + out)`` (2,560 at 5120 x 5120).
"""

import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ft2.lora.fused import FusedLinear

_scratch = threading.local()


@dataclass(frozen=True)
class SharedGate:
    """Expert weights of a whole batch; linears may merge the experts for it.

    Attributes:
        weights: [layers, (slots,) K], or [(slots,) K] of one layer.
    """

    weights: Tensor

    def layer(self, index: int) -> "SharedGate":
        """Return the gate of one layer."""
        return SharedGate(self.weights[index])


Gate = Tensor | SharedGate
"""What linears with experts are called with: weights for each sample, or shared ones."""


def layer_gate(gate: Gate | None, index: int) -> Gate | None:
    """Return what the linears of one layer get of a gate [B, layers, ...] or a shared one."""
    if gate is None:
        return None
    return gate.layer(index) if isinstance(gate, SharedGate) else gate[:, index]


def merging_pays(layer: FusedLinear, tokens: int) -> bool:
    """Say whether merging takes fewer operations than running the experts beside the base."""
    size = layer.in_features * layer.out_features
    return tokens * (layer.in_features + layer.out_features) > size


def merged_weight(layer: FusedLinear, own: Tensor) -> Tensor:
    """Return ``W + B diag(gs) A`` for weights own [K], [out, in], in this thread's scratch.

    The next call overwrites it. A weight in bfloat16 is rounded once, after the sum.
    """
    weight = layer.weight  # read once: one that is stored in float8 is made anew each time
    scale = (own * layer.scaling).repeat_interleave(layer.rank).to(layer.lora_B)
    up = (layer.lora_B * scale).to(weight.dtype)
    place = _buffer(weight)
    torch.addmm(weight, up, layer.lora_A.to(weight.dtype), out=place)
    return place


def merged_linear(linear: nn.Module, x: Tensor, gate: SharedGate) -> Tensor:
    """Apply a linear whose experts, if it has any, all samples weigh alike.

    Args:
        linear: ``nn.Linear`` or ``FusedLinear``.
        x: [B, ..., in].
        gate: of the linear's layer.

    Returns:
        [B, ..., out]; with gradients, or where it takes fewer operations, the experts run beside
        the base.
    """
    if not isinstance(linear, FusedLinear):
        plain: Tensor = linear(x)
        return plain
    tokens = x.numel() // x.shape[-1]
    if torch.is_grad_enabled() or not merging_pays(linear, tokens):
        each: Tensor = linear(x, gate.weights.expand(x.shape[0], *gate.weights.shape))
        return each
    own = gate.weights[linear.slot] if gate.weights.ndim == 2 else gate.weights
    return F.linear(x, merged_weight(linear, own), linear.bias)


def _buffer(like: Tensor) -> Tensor:
    """Return this thread's scratch of the shape, type and device of a weight."""
    buffers: dict[str, Tensor] = _scratch.__dict__
    key = f"{like.device} {like.dtype}"
    if key not in buffers or buffers[key].numel() < like.numel():
        buffers[key] = torch.empty(like.numel(), device=like.device, dtype=like.dtype)
    return buffers[key][: like.numel()].view(like.shape)
