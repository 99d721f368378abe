"""A frozen linear with several experts in one down- and one up-projection.

The experts of a linear are concatenated along the rank, and a per-sample weight (the *gate*)
scales each expert in rank space::

    gs = repeat_interleave(gate, r) * alpha / r          # [B, K*r]
    y  = x W^T + b + ((x A^T) * gs) Bc^T                 # A [K*r, in], Bc [out, K*r]

which equals ``W x + sum_k gate_k * alpha/r * B_k A_k x`` (LoRA-Flow, arXiv 2402.11455, eq. 4).
The gate is an argument of every call and never module state: a gate kept as an attribute gives
silently wrong gradients under activation checkpointing and with several draws in one graph.

The backward pass is written out: it keeps the rank-space activations, and the input only while
experts are trained; linears that read the same input share one down-projection.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ft2.errors import UsageError


class FusedLinear(nn.Linear):
    """A frozen linear carrying K experts of one rank; ``gate=None`` is bitwise the base.

    The base weight and bias keep their names (``weight``, ``bias``), so a base state dict
    still fits. Expert k owns rows ``k*r:(k+1)*r`` of ``lora_A`` and these columns of ``lora_B``.
    """

    def __init__(
        self, base: nn.Linear, num_experts: int, rank: int, alpha: float, slot: int = 0
    ) -> None:
        """Take over ``base``'s parameters and add experts with ``B = 0`` (no effect at first).

        Args:
            base: The linear to adapt; its parameters are shared, not copied, and frozen.
            num_experts: K >= 1.
            rank: r >= 1, the same for all experts.
            alpha: LoRA scale; an expert of gate weight 1 acts with ``alpha / rank``.
            slot: Which of a layer's gates this linear obeys, where a layer has several.
        """
        if num_experts < 1 or rank < 1:
            raise UsageError(f"num_experts {num_experts} and rank {rank} must be at least 1")
        nn.Module.__init__(self)
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.num_experts = num_experts
        self.rank = rank
        self.alpha = float(alpha)
        self.slot = slot
        self.weight = base.weight
        self.bias = base.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        size, device = num_experts * rank, base.weight.device
        dtype = _master_dtype(base.weight.dtype)
        down = torch.empty(size, base.in_features, device=device, dtype=dtype)
        up = torch.zeros(base.out_features, size, device=device, dtype=dtype)
        self.lora_A = nn.Parameter(down)
        self.lora_B = nn.Parameter(up)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def scaling(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank

    def rows(self, expert: int) -> slice:
        """The slice of rank space owned by one expert."""
        if not 0 <= expert < self.num_experts:
            raise UsageError(f"expert {expert} of {self.num_experts} does not exist")
        return slice(expert * self.rank, (expert + 1) * self.rank)

    def rank_scale(self, gate: Tensor, batch: int) -> Tensor:
        """Return ``repeat_interleave(gate, r) * alpha / r``, [B, K*r], for gates as in `forward`.

        Raises:
            ValueError: The gate is not for ``batch`` samples and K experts.
        """
        own = gate[:, self.slot] if gate.ndim == 3 else gate
        if own.shape != (batch, self.num_experts):
            raise ValueError(
                f"gate is {tuple(own.shape)}, wanted {(batch, self.num_experts)} "
                f"for {batch} samples and {self.num_experts} experts"
            )
        return (own * self.scaling).repeat_interleave(self.rank, dim=1)

    def forward(self, input: Tensor, gate: Tensor | None = None) -> Tensor:
        """Apply the base and, with a gate, the weighted experts.

        Args:
            input: [B, ..., in].
            gate: [B, K] weight of each expert for each sample, [B, slots, K] where a layer's
                linears have gates of their own, or None for the base alone.

        Returns:
            [B, ..., out] in the dtype of the input (of autocast, where it is on).
        """
        if gate is None:
            return run_base(self, input)
        return run_fused((self,), input, gate)[0]

    def extra_repr(self) -> str:
        """Describe the experts beside the sizes."""
        return (
            f"{super().extra_repr()}, num_experts={self.num_experts}, "
            f"rank={self.rank}, alpha={self.alpha:g}"
        )


def run_base(layer: FusedLinear, x: Tensor) -> Tensor:
    """Run the base alone, cast as `run_fused` casts.

    Under ZeRO-3 DeepSpeed has a linear of its own that adds a float32 bias where autocast would
    have rounded it: without this the reference would not be the policy at the first step.
    """
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return F.linear(x, layer.weight, layer.bias)
    dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        own = cast("Tensor | None", layer.bias)
        bias = None if own is None else own.to(dtype)
        return F.linear(x.to(dtype), layer.weight.to(dtype), bias)


def run_fused(layers: Sequence[FusedLinear], x: Tensor, gate: Tensor) -> list[Tensor]:
    """Run layers that share the input x [B, ..., in]; autocast is applied here, once."""
    kind, batch = x.device.type, x.shape[0]
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    scales = [layer.rank_scale(gate, batch) for layer in layers]
    scale = scales[0] if len(scales) == 1 else torch.cat(scales, dim=1)
    parts: list[Tensor | None] = []
    for layer in layers:
        parts += [layer.weight, layer.bias, layer.lora_A, layer.lora_B]
    with torch.autocast(kind, enabled=False):
        cast = [None if part is None else part.to(dtype) for part in parts]
        flat = x.to(dtype).reshape(batch, -1, x.shape[-1])
        outputs: tuple[Tensor, ...] = _FusedExperts.apply(flat, scale, *cast)
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in outputs]


class _FusedExperts(torch.autograd.Function):
    """``y_i = x W_i^T + b_i + ((x A_i^T) * gs_i) B_i^T`` for linears i that share x.

    Saved beside weights: ``h = x A^T`` [B, L, sum of ranks] if the gate or an up-projection is
    trained, and x [B, L, in] only if a down-projection is.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, *parts: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases, downs, ups = (parts[i::4] for i in range(4))
        hidden = F.linear(x, _cat(downs))
        ctx.ranks = [down.shape[0] for down in downs]  # type: ignore[union-attr]
        gated = (hidden * scale.unsqueeze(1)).to(x.dtype).split(ctx.ranks, dim=-1)
        outputs = []
        for weight, bias, up, own in zip(weights, biases, ups, gated, strict=True):
            y = F.linear(x, weight, bias)  # type: ignore[arg-type]
            y.flatten(0, 1).addmm_(own.flatten(0, 1), up.t())  # type: ignore[union-attr]
            outputs.append(y)
        needs = ctx.needs_input_grad
        train_down, train_up = any(needs[4::4]), any(needs[5::4])
        kept_x = x if train_down else None
        kept_hidden = hidden if needs[1] or train_up else None
        ctx.save_for_backward(kept_x, kept_hidden, scale, *weights, *downs, *ups)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, scale, *rest = ctx.saved_tensors
        count = len(grads)
        weights, downs, ups = rest[:count], rest[count : 2 * count], rest[2 * count :]
        needs = ctx.needs_input_grad
        with torch.autocast(scale.device.type, enabled=False):
            d_gated = torch.cat([dy @ up for dy, up in zip(grads, ups, strict=True)], dim=-1)
            d_hidden = (d_gated * scale.unsqueeze(1)).to(d_gated.dtype)
            dx = _input_gradient(grads, weights, d_hidden, _cat(downs)) if needs[0] else None
            d_scale = None
            if needs[1]:
                d_scale = (d_gated.to(scale.dtype) * hidden).sum(1).to(scale.dtype)
            d_parts: list[Tensor | None] = [None] * (4 * count)
            if x is not None:
                flat = d_hidden.flatten(0, 1).t() @ x.flatten(0, 1)
                d_parts[2::4] = flat.split(ctx.ranks)
            if hidden is not None and any(needs[5::4]):
                gated = (hidden * scale.unsqueeze(1)).to(hidden.dtype).split(ctx.ranks, dim=-1)
                d_parts[3::4] = [
                    dy.flatten(0, 1).t() @ own.flatten(0, 1)
                    for dy, own in zip(grads, gated, strict=True)
                ]
        return dx, d_scale, *d_parts


def _input_gradient(
    grads: Sequence[Tensor], weights: Sequence[Tensor], d_hidden: Tensor, down: Tensor
) -> Tensor:
    """Return ``sum_i dy_i W_i + dh A``, accumulated in one tensor, [B, L, in]."""
    out = d_hidden @ down
    flat = out.flatten(0, 1)
    for dy, weight in zip(grads, weights, strict=True):
        flat.addmm_(dy.flatten(0, 1), weight)
    return out


def _cat(downs: Sequence[Any]) -> Tensor:
    return downs[0] if len(downs) == 1 else torch.cat(tuple(downs))


def _master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Experts are kept in at least fp32, whatever the base is stored in."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
