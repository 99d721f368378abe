"""The transformer's frozen weights stored in float8, half of bfloat16, and computed with as before.

Every row of a linear's weight is divided by a power of two that brings its largest value just below
448, float8_e4m3fn's largest, and rounded: a relative error of at most 1/16 for all but the row's
smallest values. Powers of two come back exactly in bfloat16, so nothing is rounded a second time.

diffusers' layerwise casting stores without a scale, so that a row of small weights falls among
float8's subnormals, and casts where a module's own forward is called; merged experts read weights
without that. Here whoever reads ``linear.weight`` gets the numbers to compute with.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

FLOAT8 = torch.float8_e4m3fn
KEPT = ("processor",)
"""Audio and identity keys and values stay as they are: a twentieth of the weights, and the lips."""


def row_scales(weight: Tensor) -> Tensor:
    """Return the smallest powers of two that bring each row [out, in] to at most 448, [out, 1]."""
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    mantissa, exponent = torch.frexp(largest)
    exponent = (exponent - 9 + (mantissa > 0.875).int()).clamp(min=-100)  # 448 is 0.875 * 2**9
    scales = torch.ldexp(torch.ones_like(largest), exponent)
    return torch.where(largest > 0, scales, 1.0)


class RowScaled(nn.Module):
    """A weight kept as float8 [out, in] and scales [out, 1]."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Compute in `dtype`."""
        super().__init__()
        self.dtype = dtype

    def forward(self, stored: Tensor, scales: Tensor) -> Tensor:
        """Return the weight to compute with, [out, in]."""
        return stored.to(self.dtype) * scales

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is kept of a weight [out, in]."""
        scales = row_scales(weight)
        return (weight.float() / scales).to(FLOAT8), scales.to(weight.dtype)


def float8_linears(dit: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Return the linears of the transformer's blocks that are stored in float8, with names."""
    for name, module in dit.named_modules():
        kept = any(part in name.split(".") for part in KEPT)
        if name.startswith("blocks.") and isinstance(module, nn.Linear) and not kept:
            yield name, module


def store_float8(dit: nn.Module) -> None:
    """Store the weights of the blocks' linears in float8, in place; experts stay as they are.

    Experts must be installed before. Biases, norms, embeddings and everything that Wan computes in
    float32 stay in their number format.
    """
    for _, linear in list(float8_linears(dit)):
        linear.weight.requires_grad_(False)
        register_parametrization(linear, "weight", RowScaled(linear.weight.dtype))


def float8_gib(dit: nn.Module, value_bytes: int) -> float:
    """Return the size of a transformer (meta device is enough) once it is stored so, in GiB.

    Args:
        dit: transformer without experts.
        value_bytes: of a number in the format it is computed in.
    """
    saved = sum(m.weight.numel() * (value_bytes - 1) for _, m in float8_linears(dit))
    scales = sum(m.out_features * value_bytes for _, m in float8_linears(dit))
    whole = sum(parameter.numel() for parameter in dit.parameters()) * value_bytes
    return float(whole - saved + scales) / 2**30
