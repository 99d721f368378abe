"""The Flow-DPO loss on velocity errors, its optional terms, and the losses it is compared with.

Diffusion-DPO (Wallace et al., arXiv 2311.12908) for rectified flow, with a constant beta and mean
reduction as in VideoAlign (arXiv 2501.13918)::

    err(v; M) = sum M (v - v*)^2 / sum M             v* = noise - clean
    D = err(policy) - err(reference)                 per side; negative: the policy fits better
    z = -(beta / 2) (D_chosen - D_rejected)
    loss = mean_B[-w log sigmoid(z)]

Noise, sigma and conditions are shared by both sides and both networks; the caller sees to that.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ft2.engine import mean_over_ranks


@dataclass(frozen=True)
class PairErrors:
    """Velocity errors of a batch of pairs, each [B] or [B, draws]."""

    chosen: Tensor
    """Policy error on the chosen side (carries the gradient)."""
    rejected: Tensor
    """Policy error on the rejected side (carries the gradient)."""
    reference_chosen: Tensor
    """Reference error on the chosen side."""
    reference_rejected: Tensor
    """Reference error on the rejected side."""

    def differences(self) -> tuple[Tensor, Tensor]:
        """Return (D_chosen, D_rejected), [B], averaged over draws if there are several."""
        chosen = self.chosen - self.reference_chosen.detach()
        rejected = self.rejected - self.reference_rejected.detach()
        return over_draws(chosen), over_draws(rejected)


def over_draws(errors: Tensor) -> Tensor:
    """Return [B] from [B] or, averaged, from [B, draws]."""
    return errors.mean(1) if errors.ndim == 2 else errors


def masked_error(velocity: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each sample in float32 (float64 stays), [B].

    Args:
        velocity: Predicted velocity, [B, C, F, h, w].
        target: ``noise - clean``, the same shape.
        mask: Weights >= 0 that broadcast to that shape, such as [B, 1, F, h, w]; the sum of
            weights divides, so that the area of the mask does not scale the error. None is the
            plain mean.

    Raises:
        ValueError: Shapes differ, or a sample's mask is empty.
    """
    if velocity.shape != target.shape:
        raise ValueError(f"velocity is {tuple(velocity.shape)}, target {tuple(target.shape)}")
    wide = torch.float64 if velocity.dtype == torch.float64 else torch.float32
    square = (velocity.to(wide) - target.to(wide)).square()
    if mask is None:
        return square.flatten(1).mean(1)
    weight = mask.to(square).expand_as(square).flatten(1)
    total = weight.sum(1)
    if bool((total <= 0).any()):
        raise ValueError("the mask of a sample is empty; drop that pair")
    return (square.flatten(1) * weight).sum(1) / total


def dpo_losses(z: Tensor, target_probability: float = 1.0) -> Tensor:
    """Return ``-p log sigmoid(z) - (1 - p) log sigmoid(-z)``; p = 1 is plain DPO, [B]."""
    losses = -target_probability * F.logsigmoid(z)
    if target_probability < 1:
        losses = losses - (1 - target_probability) * F.logsigmoid(-z)
    return losses


def ipo_losses(d_chosen: Tensor, d_rejected: Tensor, gap: float) -> Tensor:
    """Return IPO's squared distance to a finite margin (arXiv 2310.12036, eq. 17), [B].

    Args:
        d_chosen: Policy minus reference error, [B].
        d_rejected: The same on the rejected side.
        gap: 1 / (2 tau) of the paper, on the scale of error differences; the loss is given in
            units of it: ``(u / gap - 1)^2`` with ``u = D_rejected - D_chosen``.
    """
    return ((d_rejected - d_chosen) / gap - 1).square()


def simpo_losses(chosen: Tensor, rejected: Tensor, beta: float, target_margin: float) -> Tensor:
    """Return SimPO's loss without a reference (arXiv 2405.14734, eq. 6) on errors, [B].

    ``-log sigmoid(-(beta / 2) (m_chosen - m_rejected) - target_margin)``.
    """
    return -F.logsigmoid(-0.5 * beta * (chosen - rejected) - target_margin)


def kto_losses(
    d_chosen: Tensor, d_rejected: Tensor, beta: float, weights: tuple[float, float] = (0.8, 1.0)
) -> Tensor:
    """Return KTO's loss (arXiv 2402.01306) with both sides as unpaired examples, [B].

    With the reward ``r = -D`` of a side and k, the mean of the two classes' mean rewards (over
    all ranks, without a gradient), a chosen side costs ``1 - sigmoid(beta (r - k))`` and a
    rejected one ``1 - sigmoid(beta (k - r))``; a pair costs the weighted mean of both.
    """
    k = mean_over_ranks(-0.5 * (d_chosen + d_rejected).detach().mean())
    chosen = 1 - torch.sigmoid(beta * (-d_chosen - k))
    rejected = 1 - torch.sigmoid(beta * (k + d_rejected))
    return 0.5 * (weights[0] * chosen + weights[1] * rejected)


def safeguard_weight(dot_chosen: Tensor, dot_cross: Tensor, mu: float) -> Tensor:
    """Return SDPO's scale of the rejected side's gradient, in [0, 1].

    With ``d = v - v*`` of each side, ``clamp((1 - mu) <d_w, d_w> / <d_w, d_l>, 0, 1)`` where the
    inner product of both sides is positive, else 1: to first order the chosen error cannot grow
    (Diffusion-SDPO, arXiv 2511.03317).

    Args:
        dot_chosen: <d_w, d_w>, any shape.
        dot_cross: <d_w, d_l>, the same shape.
        mu: Strictness in [0, 1); 0.9 in the paper for SD 1.5.
    """
    ratio = (1 - mu) * dot_chosen / dot_cross.clamp_min(torch.finfo(dot_cross.dtype).tiny)
    return torch.where(dot_cross > 0, ratio.clamp(0, 1), torch.ones_like(ratio)).detach()


def scale_gradient(errors: Tensor, factor: Tensor) -> Tensor:
    """Return errors of the same value whose gradient is multiplied by ``factor``."""
    fixed = errors.detach()
    return fixed + factor * (errors - fixed)


def margin(
    d_chosen: Tensor, d_rejected: Tensor, beta: float, positive_weight: float = 0.0
) -> Tensor:
    """Return ``z = -(beta / 2) (D_chosen - D_rejected + k relu(D_chosen))``, [B]."""
    z = -0.5 * beta * (d_chosen - d_rejected)
    if positive_weight:
        z = z - 0.5 * beta * positive_weight * F.relu(d_chosen)
    return z


def preference_loss(
    errors: PairErrors,
    beta: float,
    *,
    positive_weight: float = 0.0,
    target_probability: float = 1.0,
    pair_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the Flow-DPO loss (scalar) and the margins z, [B].

    Args:
        errors: Errors of policy and reference on both sides.
        beta: Strength of the implicit KL term, for mean-reduced errors.
        positive_weight: k of DPO-Positive (arXiv 2402.13228): ``z -= beta/2 k relu(D_chosen)``
            keeps the chosen side from getting worse.
        target_probability: p in (0.5, 1]. Below 1 the loss is
            ``-p log sigmoid(z) - (1 - p) log sigmoid(-z)`` (conservative DPO), whose optimum is
            the finite margin ``log(p / (1 - p))``; 1 is plain DPO.
        pair_weight: Weight of each pair, [B].
    """
    z = margin(*errors.differences(), beta, positive_weight)
    losses = dpo_losses(z, target_probability)
    return (losses if pair_weight is None else losses * pair_weight).mean(), z


def implicit_accuracy(d_chosen: Tensor, d_rejected: Tensor) -> Tensor:
    """Return 1 where the policy prefers the chosen side, 0 where the other, 1/2 for ties, [B]."""
    gap = d_rejected - d_chosen
    return (gap > 0).double() + 0.5 * (gap == 0).double()
