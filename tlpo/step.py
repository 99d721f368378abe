"""One preference step: errors of policy and reference on both sides, under shared noise."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ft2.flow import add_noise, velocity_target
from ft2.tlpo.config import DpoConfig
from ft2.tlpo.data import Batch
from ft2.tlpo.dpo import PairErrors, masked_error, preference_loss
from ft2.wan.condition import Conditioning

GateFunction = Callable[[Tensor], Tensor | None]
"""Maps sigma [B] to expert weights [B, layers, K], or to None for the base network."""


class VelocityModel(Protocol):
    """What a preference step needs of a generator."""

    def velocity(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, gate: Tensor | None = None
    ) -> Tensor:
        """Return the velocity at noisy latents x [B, C, f, h, w] and noise levels sigma [B]."""


def base_gate(sigma: Tensor) -> None:
    """Return None: the network without experts, whatever the noise level."""
    del sigma


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
    draws = sigma.shape[1]
    level = sigma.reshape(-1)
    flat = noise.flatten(0, 1)
    sides = [side.repeat_interleave(draws, dim=0) for side in (batch.chosen, batch.rejected)]
    clean, noise2, level2 = torch.cat(sides), torch.cat((flat, flat)), torch.cat((level, level))
    cond = batch.cond.repeat(draws)
    velocity = model.velocity(
        add_noise(clean, noise2, level2), level2, Conditioning.cat([cond, cond]), gate(level2)
    )
    mask = None
    if batch.mask is not None:
        mask = torch.cat([batch.mask.repeat_interleave(draws, dim=0)] * 2)
    errors = masked_error(velocity, velocity_target(clean, noise2), mask)
    chosen, rejected = errors.reshape(2, -1, draws)
    return chosen, rejected


class PreferenceStep(nn.Module):
    """The training loss as a module, so that an engine sees exactly what is trained."""

    def __init__(
        self,
        model: VelocityModel,
        gate: GateFunction,
        reference_gate: GateFunction,
        trainable: Mapping[str, nn.Parameter],
        dpo: DpoConfig,
        whole: nn.Module | None = None,
    ) -> None:
        """Join the parts.

        Args:
            model: The generator; not registered, so that its frozen weights are left alone.
            gate: The policy's weights (may carry gradients).
            reference_gate: The reference's; `base_gate` is the network without experts.
            trainable: Parameters to train, by name.
            dpo: Loss settings.
            whole: A module to register as well, for engines that split frozen weights (ZeRO-3).
        """
        super().__init__()
        self._model = (model,)
        self._gate, self._reference_gate, self._dpo = gate, reference_gate, dpo
        if whole is not None:
            self.whole = whole
        registered = {id(p) for p in self.parameters()}
        for name, parameter in trainable.items():
            if id(parameter) not in registered:
                self.register_parameter(name.replace(".", "/"), parameter)

    @torch.no_grad()
    def reference_errors(self, batch: Batch, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reference's errors on (chosen, rejected), each [B, N]."""
        return pair_errors(self._model[0], batch, sigma, noise, self._reference_gate)

    def policy_errors(self, batch: Batch, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the policy's errors on (chosen, rejected), each [B, N]."""
        return pair_errors(self._model[0], batch, sigma, noise, self._gate)

    def forward(
        self, batch: Batch, sigma: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return (loss, metrics); the reference runs first, so that no graph is held meanwhile."""
        reference = self.reference_errors(batch, sigma, noise)
        policy = self.policy_errors(batch, sigma, noise)
        return preference_loss(
            PairErrors(*policy, *reference),
            self._dpo.beta,
            positive_weight=self._dpo.positive_weight,
            target_probability=self._dpo.target_probability,
        )
