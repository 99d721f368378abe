"""Calling linears that may carry experts, with a gate of any kind."""

from collections.abc import Sequence

from torch import Tensor, nn

from ft2.lora.fused import FusedLinear, run_fused
from ft2.lora.merge import Gate


def apply_linear(linear: nn.Module, x: Tensor, gate: Gate | None = None) -> Tensor:
    """Call a linear with the gate if it carries experts, without it otherwise.

    Args:
        linear: ``nn.Linear`` or ``FusedLinear``.
        x: [B, ..., in].
        gate: [B, K] ([B, slots, K]), one that all samples share, or None (base only).

    Returns:
        [B, ..., out].
    """
    out: Tensor = linear(x, gate) if isinstance(linear, FusedLinear) else linear(x)
    return out


def apply_linears(
    linears: Sequence[nn.Module], x: Tensor, gate: Gate | None = None
) -> list[Tensor]:
    """Call several linears on one input; the experts of all share one down-projection.

    Under ZeRO-3 each is called by itself, because DeepSpeed gathers weights module by module.

    Args:
        linears: Such as q, k and v of one attention.
        x: [B, ..., in].
        gate: As for `apply_linear`.

    Returns:
        One [B, ..., out] for each.
    """
    if gate is None:
        return [apply_linear(linear, x, gate) for linear in linears]
    fused = [m for m in linears if isinstance(m, FusedLinear) and not hasattr(m.weight, "ds_id")]
    if len(fused) < len(linears):
        return [apply_linear(linear, x, gate) for linear in linears]
    return run_fused(fused, x, gate)


def repeat_gate(gate: Tensor | None, repeats: int) -> Tensor | None:
    """Repeat each gate row for a batch of B x repeats (frames folded into the batch).

    Args:
        gate: [B, K] or None.
        repeats: Consecutive rows per sample, as in ``x.reshape(B * repeats, ...)``.

    Returns:
        [B * repeats, K], or None for None.
    """
    return None if gate is None else gate.repeat_interleave(repeats, dim=0)
