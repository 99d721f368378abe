"""Passes of a generator over both sides of pairs, under noise that the sides share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ft2.flow import add_noise, velocity_target
from ft2.lora import Gate
from ft2.tlpo import dpo
from ft2.tlpo.data import Batch
from ft2.wan.condition import Conditioning
from ft2.wan.recompute import Recompute

GateFunction = Callable[[Tensor], Gate | None]
"""Maps sigma [B] to expert weights [B, layers, K] or shared ones, or to None for the base."""


class VelocityModel(Protocol):
    """What a preference step needs of a generator."""

    def velocity(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, gate: Gate | None = None
    ) -> Tensor:
        """Return the velocity at noisy latents x [B, C, f, h, w] and noise levels sigma [B]."""


def base_gate(sigma: Tensor) -> None:
    """Return None: the network without experts, whatever the noise level."""
    del sigma


@dataclass(frozen=True)
class Draws:
    """Both sides of B pairs under N shared (sigma, noise) draws, ready for a network."""

    clean: tuple[Tensor, Tensor]
    """Latents of chosen and rejected, each [B * N, C, f, h, w]."""
    mask: tuple[Tensor, Tensor] | None
    """Error weights of each side, [B * N, 1, f, h, w]."""
    cond: Conditioning
    """Of B * N rows: one object for both sides and both networks."""
    sigma: Tensor
    """[B * N]."""
    noise: Tensor
    """[B * N, C, f, h, w]."""
    count: int
    """N."""

    @classmethod
    def of(cls, batch: Batch, sigma: Tensor, noise: Tensor) -> "Draws":
        """Repeat every pair for each of its draws; sigma [B, N], noise [B, N, C, f, h, w]."""
        count = sigma.shape[1]

        def repeat(side: Tensor) -> Tensor:
            return side.repeat_interleave(count, dim=0)

        mask = None
        if batch.mask is not None:
            other = batch.mask if batch.rejected_mask is None else batch.rejected_mask
            mask = repeat(batch.mask), repeat(other)
        clean = repeat(batch.chosen), repeat(batch.rejected)
        cond = batch.cond.repeat(count)
        return cls(clean, mask, cond, sigma.reshape(-1), noise.flatten(0, 1), count)

    def targets(self) -> tuple[Tensor, Tensor]:
        """Return ``noise - clean`` of both sides."""
        return velocity_target(self.clean[0], self.noise), velocity_target(
            self.clean[1], self.noise
        )

    def errors(self, velocities: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the errors of (chosen, rejected), each [B, N]."""
        masks = (None, None) if self.mask is None else self.mask
        chosen, rejected = (
            dpo.masked_error(v, target, mask).reshape(-1, self.count)
            for v, target, mask in zip(velocities, self.targets(), masks, strict=True)
        )
        return chosen, rejected


def pair_velocities(
    model: VelocityModel, draws: Draws, gate: GateFunction, later: Recompute | None = None
) -> tuple[Tensor, Tensor]:
    """Return one network's velocities on (chosen, rejected), each [B * N, C, f, h, w].

    Args:
        model: The generator.
        draws: Pairs, noise levels and noise.
        gate: Expert weights for each noise level.
        later: One pass a side instead of one for both, the rejected side first and by this way of
            recomputing; the backward pass goes through the chosen side first (autograd takes what
            was made last): the activations of one side at a time are held. This decomposed
            backward is exact and costs half a forward pass more.
    """
    sigma, noise, cond = draws.sigma, draws.noise, draws.cond
    noisy = [add_noise(clean, noise, sigma) for clean in draws.clean]
    if later is None:
        level = torch.cat((sigma, sigma))
        cond2 = Conditioning.cat([cond, cond])
        sides = model.velocity(torch.cat(noisy), level, cond2, gate(level)).chunk(2)
        return sides[0], sides[1]
    weights = gate(sigma)
    rejected: Tensor = later(model.velocity, noisy[1], sigma, cond, weights)
    return model.velocity(noisy[0], sigma, cond, weights), rejected


def pair_errors(
    model: VelocityModel, batch: Batch, sigma: Tensor, noise: Tensor, gate: GateFunction
) -> tuple[Tensor, Tensor]:
    """Return the errors of one network on (chosen, rejected), each [B, N].

    Both sides go through the network together, with the same noise, sigma and conditions.

    Args:
        model: The generator.
        batch: B pairs.
        sigma: Noise levels in [0, 1], [B, N].
        noise: Standard normal, [B, N, C, f, h, w].
        gate: Expert weights for each noise level.
    """
    draws = Draws.of(batch, sigma, noise)
    return draws.errors(pair_velocities(model, draws, gate))
