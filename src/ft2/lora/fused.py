"""A frozen linear with several experts in one down- and one up-projection.

The experts of a linear are concatenated along the rank, and a per-sample weight (the *gate*)
scales each expert in rank space::

    gs = repeat_interleave(gate, r) * alpha / r          # [B, K*r]
    y  = x W^T + b + ((x A^T) * gs) Bc^T                 # A [K*r, in], Bc [out, K*r]

which equals ``W x + sum_k gate_k * alpha/r * B_k A_k x`` (LoRA-Flow, arXiv 2402.11455, eq. 4).
The gate is an argument of every call and never module state: a gate kept as an attribute gives
silently wrong gradients under activation checkpointing and with several draws in one graph.

How the products are taken, and what their backward pass keeps, is `ft2.lora.product`'s; linears
that read the same input share one down-projection.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.lora.merge import Gate, SharedGate, merging_pays
from ft2.lora.product import ExpertsProduct, base_product


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

    @property
    def trained(self) -> bool:
        """Whether the experts are trained, rather than a gate over them or nothing."""
        return self.lora_A.requires_grad or self.lora_B.requires_grad

    def forward(self, input: Tensor, gate: Gate | None = None) -> Tensor:
        """Apply the base and, with a gate, the weighted experts.

        Args:
            input: [B, ..., in].
            gate: [B, K] weight of each expert for each sample, [B, slots, K] where a layer's
                linears have gates of their own, one that all samples share, or None for the base
                alone.

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
    """Run the base alone, cast and added up as `run_fused` does it.

    Under ZeRO-3 DeepSpeed has a linear of its own that adds a float32 bias where autocast would
    have rounded it: without this the reference would not be the policy at the first step.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        own = cast("Tensor | None", layer.bias)
        bias = None if own is None else own.to(dtype)
        return base_product(x.to(dtype), layer.weight.to(dtype), bias)


def run_fused(layers: Sequence[FusedLinear], x: Tensor, gate: Gate) -> list[Tensor]:
    """Run layers that share the input x [B, ..., in]; autocast is applied here, once.

    Whether experts are merged depends on shapes, on the dtype and on whether they are trained,
    never on whether gradients are wanted: a reference must be its policy to the bit.
    """
    kind, shared = x.device.type, isinstance(gate, SharedGate)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    weights = gate.weights[None] if isinstance(gate, SharedGate) else gate
    rows = 1 if shared else x.shape[0]
    scales = [layer.rank_scale(weights, rows) for layer in layers]
    scale = scales[0] if len(scales) == 1 else torch.cat(scales, dim=1)
    parts: list[Tensor | None] = []
    for layer in layers:
        parts += [layer.weight, layer.bias, layer.lora_A, layer.lora_B]
    with torch.autocast(kind, enabled=False):
        cast = [None if part is None else part.to(dtype) for part in parts]
        flat = x.to(dtype).reshape(rows, -1, x.shape[-1])
        merges = 1 if shared and not any(layer.trained for layer in layers) else 2
        sizes = [(layer.in_features, layer.out_features) for layer in layers]
        rounded = isinstance(gate, SharedGate) and gate.rounded
        merge = merging_pays(sizes, flat.shape[1], merges, dtype, rounded)
        outputs: tuple[Tensor, ...] = ExpertsProduct.apply(
            flat, scale, merge, torch.is_grad_enabled(), *cast
        )
    return [y.reshape(*x.shape[:-1], y.shape[-1]) for y in outputs]


def _master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Experts are kept in at least fp32, whatever the base is stored in."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
