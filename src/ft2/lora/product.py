"""The products of frozen linears that share an input, with their experts, and the gradients.

``y_i = x W_i^T + b_i + ((x A_i^T) * gs_i) B_i^T`` for linears i, in one of two forms:

* *beside*: two projections through rank space for every token. The base is added last, onto the
  experts' part, so that 16 bits round the sum once: the other way round an expert whose part is
  below half a step of y's format would be rounded away.
* *merged*: ``x (W_i + B_i diag(gs_i) A_i)^T`` (`ft2.lora.merge`). A gate's gradient still takes
  ``x A^T`` and ``dy B`` for every token, but y and dx take none.

Both save the same beside weights: ``h = x A^T`` [B, L, sum of ranks] if the gate or an
up-projection is trained, and x [B, L, in] only if a down-projection is.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ft2.lora.merge import merged_weight


def base_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + b``, [..., out], by the very calls that `ExpertsProduct` ends with.

    So a policy whose experts have no effect yet equals the base to the bit.
    """
    y = _start(x.flatten(0, -2), weight, bias)
    y.addmm_(x.flatten(0, -2), weight.t())
    return y.reshape(*x.shape[:-1], -1)


class ExpertsProduct(torch.autograd.Function):
    """Products of linears that share x [B, L, in], with experts weighed by scale [B, ranks].

    Called with (x, scale, merge, keep, then weight, bias, down, up of each linear): ``merge`` is
    the form, ``keep`` is False where there will be no backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, merge: bool, keep: bool, *parts: Any
    ) -> tuple[Tensor, ...]:
        """Return y_i [B, L, out_i] of every linear."""
        weights, biases, downs, ups = (parts[i::4] for i in range(4))
        needs = ctx.needs_input_grad
        train_down, train_up = any(needs[6::4]), any(needs[7::4])
        ctx.merge, ctx.ranks = merge, [down.shape[0] for down in downs]
        ctx.train_up = train_up
        hidden: Tensor | None = None
        if not merge or (keep and (needs[1] or train_up)):
            hidden = F.linear(x, _cat(downs))
        outputs = [_start(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        if merge:
            scales = scale.split(ctx.ranks, dim=-1)
            for y, own, weight, down, up in zip(outputs, scales, weights, downs, ups, strict=True):
                for sample, tokens, out in zip(own, x, y, strict=True):
                    out.addmm_(tokens, merged_weight(weight, sample, down, up).t())
        else:
            assert hidden is not None
            gated = _weigh(hidden, scale).split(ctx.ranks, dim=-1)
            for y, own, weight, up in zip(outputs, gated, weights, ups, strict=True):
                y.flatten(0, 1).addmm_(own.flatten(0, 1), up.t())
                y.flatten(0, 1).addmm_(x.flatten(0, 1), weight.t())
        kept_hidden = hidden if needs[1] or train_up else None
        ctx.save_for_backward(x if train_down else None, kept_hidden, scale, *weights, *downs, *ups)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of what `forward` was given, for dy_i [B, L, out_i]."""
        x, hidden, scale, *rest = ctx.saved_tensors
        count = len(grads)
        weights, downs, ups = rest[:count], rest[count : 2 * count], rest[2 * count :]
        needs = ctx.needs_input_grad
        dx = d_scale = d_hidden = None
        d_parts: list[Tensor | None] = [None] * (4 * count)
        with torch.autocast(scale.device.type, enabled=False):
            beside = needs[0] and not ctx.merge
            if needs[1] or x is not None or beside:
                d_gated = _cat([dy @ up for dy, up in zip(grads, ups, strict=True)], dim=-1)
                if needs[1]:
                    d_scale = (d_gated.to(scale.dtype) * hidden).sum(1).to(scale.dtype)
                if x is not None or beside:
                    d_hidden = _weigh(d_gated, scale)
            if beside:
                assert d_hidden is not None
                dx = _input_gradient(grads, weights, d_hidden, _cat(downs))
            elif needs[0]:
                scales = scale.split(ctx.ranks, dim=-1)
                dx = _merged_input_gradient(grads, scales, weights, downs, ups)
            if x is not None:
                assert d_hidden is not None
                flat = d_hidden.flatten(0, 1).t() @ x.flatten(0, 1)
                d_parts[2::4] = flat.split(ctx.ranks)
            if ctx.train_up:
                gated = _weigh(hidden, scale).split(ctx.ranks, dim=-1)
                d_parts[3::4] = [
                    dy.flatten(0, 1).t() @ own.flatten(0, 1)
                    for dy, own in zip(grads, gated, strict=True)
                ]
        return dx, d_scale, None, None, *d_parts


def _start(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the bias for every token of x [..., in], [..., out]: what products are added to."""
    shape = (*x.shape[:-1], weight.shape[0])
    if bias is None:
        return x.new_zeros(shape)
    return bias.detach().expand(shape).clone(memory_format=torch.contiguous_format)


def _weigh(hidden: Tensor, scale: Tensor) -> Tensor:
    """Return rank space [B, L, ranks] times scale [B, ranks], in the dtype of the former."""
    return (hidden * scale.unsqueeze(1)).to(hidden.dtype)


def _input_gradient(
    grads: Sequence[Tensor], weights: Sequence[Tensor], d_hidden: Tensor, down: Tensor
) -> Tensor:
    """Return ``sum_i dy_i W_i + dh A``, accumulated in one tensor, [B, L, in]."""
    out = d_hidden @ down
    flat = out.flatten(0, 1)
    for dy, weight in zip(grads, weights, strict=True):
        flat.addmm_(dy.flatten(0, 1), weight)
    return out


def _merged_input_gradient(
    grads: Sequence[Tensor],
    scales: Sequence[Tensor],
    weights: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
) -> Tensor:
    """Return ``sum_i dy_i (W_i + B_i diag(gs_i) A_i)``, [B, L, in]."""
    out = grads[0].new_empty(*grads[0].shape[:-1], weights[0].shape[1])
    for number, parts in enumerate(zip(grads, scales, weights, downs, ups, strict=True)):
        dy, scale, weight, down, up = parts
        for tokens, sample, place in zip(dy, scale, out, strict=True):
            merged = merged_weight(weight, sample, down, up)
            torch.addmm(place, tokens, merged, beta=min(number, 1), out=place)
    return out


def _cat(parts: Sequence[Any], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=dim)
