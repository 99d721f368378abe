"""One preference step: errors of policy and reference on both sides, under shared noise."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ft2.tlpo import dpo
from ft2.tlpo.config import DpoConfig
from ft2.tlpo.data import Batch
from ft2.tlpo.passes import Draws, GateFunction, VelocityModel, pair_velocities
from ft2.wan.recompute import Recompute, recompute

Stats = dict[str, Tensor]
"""What a step says of its pairs; every tensor has the pairs as first dimension."""


class PreferenceStep(nn.Module):
    """The training loss as a module, so that an engine sees exactly what is trained."""

    def __init__(
        self,
        model: VelocityModel,
        gate: GateFunction,
        reference_gate: GateFunction,
        trainable: Mapping[str, nn.Parameter],
        config: DpoConfig,
        whole: nn.Module | None = None,
        later: Recompute = recompute,
        timed: Callable[[str], AbstractContextManager[None]] | None = None,
    ) -> None:
        """Join the parts.

        Args:
            model: The generator; not registered, so that its frozen weights are left alone.
            gate: The policy's weights (may carry gradients).
            reference_gate: The reference's; `base_gate` is the network without experts.
            trainable: Parameters to train, by name.
            config: Loss settings.
            whole: A module to register as well, for engines that split frozen weights (ZeRO-3).
            later: How a decomposed backward computes the rejected side again.
            timed: Gives the context in which the ``reference`` pass runs.
        """
        super().__init__()
        self._model = (model,)
        self._gate, self._reference_gate, self._config = gate, reference_gate, config
        self._later, self._timed = later, timed or _untimed
        if whole is not None:
            self.whole = whole
        registered = {id(p) for p in self.parameters()}
        for name, parameter in trainable.items():
            if id(parameter) not in registered:
                self.register_parameter(name.replace(".", "/"), parameter)

    @torch.no_grad()
    def reference_errors(self, batch: Batch, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reference's errors on (chosen, rejected), each [B, N]."""
        draws = Draws.of(batch, sigma, noise)
        return draws.errors(self._velocities(draws, self._reference_gate))

    def policy_errors(self, batch: Batch, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the policy's errors on (chosen, rejected), each [B, N]."""
        draws = Draws.of(batch, sigma, noise)
        return draws.errors(self._velocities(draws, self._gate))

    def forward(
        self,
        batch: Batch,
        sigma: Tensor,
        noise: Tensor,
        reference: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Stats]:
        """Return the loss and the stats of its pairs.

        The reference runs first, so that no graph is held meanwhile.

        Args:
            batch: B pairs.
            sigma: Noise levels, [B, N].
            noise: Standard normal, [B, N, C, f, h, w].
            reference: Its errors on (chosen, rejected), each [B, N], if they are known already.
        """
        draws = Draws.of(batch, sigma, noise)
        held: tuple[Tensor, Tensor] | None = None
        if reference is None:
            with torch.no_grad(), self._timed("reference"):
                held = self._velocities(draws, self._reference_gate)
                reference = draws.errors(held)
        velocities = self._velocities(draws, self._gate)
        errors = dpo.PairErrors(*draws.errors(velocities), *reference)
        stats: Stats = {"sigma": sigma}
        if self._config.safeguard:
            errors, stats["safeguard"] = _safeguarded(
                errors, draws, velocities, self._config.safeguard
            )
        losses, z = self._losses(errors)
        losses = losses + self._extra_terms(errors, velocities, held, draws.count)
        kept = torch.ones_like(z) if batch.weight is None else batch.weight.to(z)
        stats |= {"loss": losses * kept, "margin": z, "weight": kept}
        stats["d_chosen"] = errors.chosen - errors.reference_chosen
        stats["d_rejected"] = errors.rejected - errors.reference_rejected
        if held is not None:
            stats |= _drift(velocities, held, draws)
        return (losses * kept).mean(), {name: value.detach() for name, value in stats.items()}

    def _velocities(self, draws: Draws, gate: GateFunction) -> tuple[Tensor, Tensor]:
        split = self._config.decomposed and torch.is_grad_enabled()
        return pair_velocities(self._model[0], draws, gate, self._later if split else None)

    def _losses(self, errors: dpo.PairErrors) -> tuple[Tensor, Tensor]:
        """Return (loss, margin z) of each pair, [B]."""
        config = self._config
        d_chosen, d_rejected = errors.differences()
        z = dpo.margin(d_chosen, d_rejected, config.beta, config.positive_weight)
        if config.loss == "dpo":
            return dpo.dpo_losses(z, config.target_probability), z
        if config.loss == "ipo":
            return dpo.ipo_losses(d_chosen, d_rejected, config.ipo_gap), z
        if config.loss == "kto":
            return dpo.kto_losses(d_chosen, d_rejected, config.beta), z
        chosen, rejected = dpo.over_draws(errors.chosen), dpo.over_draws(errors.rejected)
        return dpo.simpo_losses(chosen, rejected, config.beta, config.simpo_margin), z

    def _extra_terms(
        self,
        errors: dpo.PairErrors,
        velocities: tuple[Tensor, Tensor],
        held: tuple[Tensor, Tensor] | None,
        count: int,
    ) -> Tensor | float:
        """Return the SFT and anchor terms of each pair, [B], or 0."""
        terms: Tensor | float = 0.0
        if self._config.sft:
            terms = terms + self._config.sft * dpo.over_draws(errors.chosen)
        if self._config.anchor:
            assert held is not None  # the config refuses an anchor with cached reference scalars
            apart = torch.stack(
                [dpo.masked_error(v, r) for v, r in zip(velocities, held, strict=True)]
            )
            terms = terms + self._config.anchor * apart.mean(0).reshape(-1, count).mean(1)
        return terms


def _untimed(_: str) -> AbstractContextManager[None]:
    return nullcontext()


def _safeguarded(
    errors: dpo.PairErrors, draws: Draws, velocities: tuple[Tensor, Tensor], mu: float
) -> tuple[dpo.PairErrors, Tensor]:
    """Return the errors with SDPO's scale on the rejected side's gradient, and the scale [B, N]."""
    sides = []
    for side, (velocity, target) in enumerate(zip(velocities, draws.targets(), strict=True)):
        apart = (velocity.detach().float() - target.float()).flatten(1)
        if draws.mask is None:
            sides.append(apart / apart.shape[1] ** 0.5)
        else:
            weight = draws.mask[side].to(apart).expand_as(velocity).flatten(1)
            sides.append(apart * (weight / weight.sum(1, keepdim=True)).sqrt())
    dots = (sides[0] * sides[0]).sum(1), (sides[0] * sides[1]).sum(1)
    factor = dpo.safeguard_weight(*dots, mu).reshape(-1, draws.count)
    rejected = dpo.scale_gradient(errors.rejected, factor)
    return (
        dpo.PairErrors(errors.chosen, rejected, errors.reference_chosen, errors.reference_rejected),
        factor,
    )


@torch.no_grad()
def _drift(velocities: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], draws: Draws) -> Stats:
    """Return the mean squared distance to the reference, in the mask and outside, [B, N] each."""
    squares = [
        (v.float() - r.float()).square().mean(1, keepdim=True)
        for v, r in zip(velocities, held, strict=True)
    ]
    if draws.mask is None:
        means = [square.flatten(1).mean(1) / 2 for square in squares]
        return {"kl_proxy": (means[0] + means[1]).reshape(-1, draws.count)}
    regions = [mask.expand_as(s) >= 0.5 for mask, s in zip(draws.mask, squares, strict=True)]
    found = {}
    for name, flip in (("kl_proxy", False), ("kl_proxy_outside", True)):
        means = [
            _mean_where(s, ~r if flip else r) / 2 for s, r in zip(squares, regions, strict=True)
        ]
        found[name] = (means[0] + means[1]).reshape(-1, draws.count)
    return found


def _mean_where(values: Tensor, region: Tensor) -> Tensor:
    """Return the mean of each sample's values within a region, 0 where it is empty, [B]."""
    return (values * region).flatten(1).sum(1) / region.flatten(1).sum(1).clamp_min(1)
