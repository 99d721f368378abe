"""The space in which the transformer sees latents, and the Gaussian part of the velocity there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ft2.flow import per_sample

MIN_SIGMA = 1e-3


class LatentSpace(nn.Module):
    """The affine map between raw codec latents and what the transformer sees.

    ``x = (z - shift) / scale``, where ``z`` is first made relative to the reference held still
    if the architecture says ``residual``. ``variance`` is that of ``x``, for the Gaussian skip.
    """

    shift: Tensor
    scale: Tensor
    variance: Tensor
    image_shift: Tensor
    image_scale: Tensor

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        """Create the identity map for latents [C, f, h, w]; size-1 dimensions broadcast."""
        super().__init__()
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("image_shift", torch.zeros(shape))
        self.register_buffer("image_scale", torch.ones(shape))


def gaussian_skip(x: Tensor, sigma: Tensor, variance: Tensor) -> Tensor:
    """Return the best linear estimate of the velocity for data N(0, variance).

    ``E[noise - clean | x] = x (s - (1 - s) d2) / ((1 - s)^2 d2 + s^2)`` with s = sigma and
    d2 = variance: the transformer only has to learn what is not Gaussian.
    """
    level = per_sample(sigma.clamp_min(MIN_SIGMA), x)
    keep = 1 - level
    return x * (level - keep * variance) / (keep.square() * variance + level.square())
