"""Rectified flow matching as Wan uses it: one noise level, one target, one Euler sampler.

The noise level ``sigma`` runs from 0 (data) to 1 (pure noise); the network's target is the
velocity ``noise - clean`` along the straight path ``(1 - sigma) * clean + sigma * noise``.
The timestep ``1000 * sigma`` exists only at the boundary of the transformer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TIMESTEP_SCALE = 1000.0
"""Factor between ``sigma`` and the timestep that the transformer embeds."""


def per_sample(sigma: Tensor, like: Tensor) -> Tensor:
    """View ``sigma`` [B] so that it broadcasts over ``like`` [B, ...]."""
    return sigma.reshape(-1, *([1] * (like.ndim - 1))).to(like.dtype)


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return ``(1 - sigma) * clean + sigma * noise``.

    Args:
        clean: data, [B, ...].
        noise: standard normal noise of the same shape.
        sigma: noise levels in [0, 1], [B].
    """
    level = per_sample(sigma, clean)
    return (1 - level) * clean + level * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """Return the regression target ``noise - clean`` (the path's derivative by sigma)."""
    return noise - clean


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Return ``shift * sigma / (1 + (shift - 1) * sigma)``: above 1 there is more high noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shifted_sigmas(num_steps: int, shift: float) -> Tensor:
    """Return the sampler's noise levels, float32 [num_steps + 1], from 1 down to 0.

    ``sigma_i = 1 - i / N`` is shifted as in Wan. With N = 30 and shift 5:

    >>> levels = shifted_sigmas(30, 5.0)
    >>> [round(1000 * level, 2) for level in levels.tolist()[:3] + levels.tolist()[-3:]]
    [1000.0, 993.15, 985.92, 263.16, 147.06, 0.0]

    Raises:
        ValueError: if ``num_steps`` < 1 or ``shift`` <= 0.
    """
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"need num_steps >= 1 and shift > 0, got {num_steps} and {shift}")
    steps = torch.arange(num_steps + 1, dtype=torch.float64)
    return shift_sigma(1 - steps / num_steps, shift).float()


def sample_sigmas(
    count: int,
    generator: torch.Generator | None = None,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
    stratified: bool = False,
    window: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Draw training noise levels, float32 [count] in (0, 1), from a shifted logit-normal.

    Args:
        count: number of draws.
        generator: CPU generator; the same state gives the same draws.
        mean: mean of the logit.
        std: standard deviation of the logit.
        shift: Wan's shift, applied after the sigmoid.
        stratified: spread the draws over equal quantile bins (lower variance over a batch).
        window: only levels between these two; the distribution within is what it is without.
    """
    if stratified or window != (0.0, 1.0):
        strata = torch.randperm(count, generator=generator) if stratified else 0
        places = strata + torch.rand(count, generator=generator)
        places = places / count if stratified else places
        ends = torch.tensor(window, dtype=torch.float64)
        low, high = sigma_quantiles(ends, mean=mean, std=std, shift=shift).tolist()
        bins = low + (high - low) * places
        normal = torch.special.ndtri(bins.double().clamp(1e-6, 1 - 1e-6)).float()
    else:
        normal = torch.randn(count, generator=generator)
    return shift_sigma(torch.sigmoid(mean + std * normal), shift)


def sigma_quantiles(
    sigma: Tensor, *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Tensor:
    """Return which part of the draws of :func:`sample_sigmas` lies below each level, in [0, 1]."""
    unshifted = sigma / (shift - (shift - 1) * sigma)
    return torch.special.ndtr((torch.logit(unshifted.double()) - mean) / std)


def euler_sample(
    velocity_fn: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor
) -> Tensor:
    """Integrate the flow from noise to data with Euler steps and return the last state.

    Args:
        velocity_fn: maps (x [B, ...], sigma [B]) to the velocity [B, ...].
        noise: the state at ``sigmas[0]``, [B, ...]; kept in its own dtype (float32 for Wan).
        sigmas: decreasing levels, [N + 1], as from :func:`shifted_sigmas`.
    """
    x = noise
    for now, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        level = torch.full((x.shape[0],), now, dtype=torch.float32, device=x.device)
        x = x + velocity_fn(x, level).to(x.dtype) * (after - now)
    return x
