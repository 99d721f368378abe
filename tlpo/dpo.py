"""The Flow-DPO loss on velocity errors.

Diffusion-DPO (Wallace et al., arXiv 2311.12908) for rectified flow, with a constant beta and mean
reduction as in VideoAlign (arXiv 2501.13918)::

    err(v; M) = sum M (v - v*)^2 / sum M             v* = noise - clean
    D = err(policy) - err(reference)                 per side; negative: the policy fits better
    z = -(beta / 2) (D_chosen - D_rejected)
    loss = mean_B[-log sigmoid(z)]

Noise, sigma and conditions are shared by both sides and both networks; the caller sees to that.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
        if chosen.ndim == 2:
            return chosen.mean(1), rejected.mean(1)
        return chosen, rejected


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


def preference_loss(
    errors: PairErrors,
    beta: float,
    *,
    positive_weight: float = 0.0,
    target_probability: float = 1.0,
    pair_weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the Flow-DPO loss (scalar) and what to log about it.

    Args:
        errors: Errors of policy and reference on both sides.
        beta: Strength of the implicit KL term, for mean-reduced errors.
        positive_weight: k of DPO-Positive (arXiv 2402.13228): ``z -= beta/2 k relu(D_chosen)``
            keeps the chosen side from getting worse.
        target_probability: p in (0.5, 1]. Below 1 the loss is
            ``-p log sigmoid(z) - (1 - p) log sigmoid(-z)`` (conservative DPO), whose optimum is
            the finite margin ``log(p / (1 - p))``; 1 is plain DPO.
        pair_weight: Weight of each pair, [B].

    Returns:
        The loss and metrics: ``loss``, ``implicit_accuracy`` (ties count one half), ``margin``,
        ``margin_std``, ``gradient_factor`` (mean sigmoid(-z), 0.5 at the start), ``d_chosen``,
        ``d_rejected``, ``chosen_worse`` (share of D_chosen > 0).
    """
    d_chosen, d_rejected = errors.differences()
    z = -0.5 * beta * (d_chosen - d_rejected)
    if positive_weight:
        z = z - 0.5 * beta * positive_weight * F.relu(d_chosen)
    per_pair = -target_probability * F.logsigmoid(z)
    if target_probability < 1:
        per_pair = per_pair - (1 - target_probability) * F.logsigmoid(-z)
    if pair_weight is not None:
        per_pair = per_pair * pair_weight
    loss = per_pair.mean()
    return loss, pair_metrics(z.detach(), d_chosen.detach(), d_rejected.detach(), loss.detach())


def pair_metrics(z: Tensor, d_chosen: Tensor, d_rejected: Tensor, loss: Tensor) -> dict[str, float]:
    """Return the diagnostics of one batch of pairs; all inputs [B], ``loss`` scalar."""
    return {
        "loss": float(loss),
        "implicit_accuracy": float(implicit_accuracy(d_chosen, d_rejected).mean()),
        "margin": float(z.mean()),
        "margin_std": float(z.std(unbiased=False)),
        "gradient_factor": float(torch.sigmoid(-z).mean()),
        "d_chosen": float(d_chosen.mean()),
        "d_rejected": float(d_rejected.mean()),
        "chosen_worse": float((d_chosen > 0).double().mean()),
    }


def implicit_accuracy(d_chosen: Tensor, d_rejected: Tensor) -> Tensor:
    """Return 1 where the policy prefers the chosen side, 0 where the other, 1/2 for ties, [B]."""
    gap = d_rejected - d_chosen
    return (gap > 0).double() + 0.5 * (gap == 0).double()
