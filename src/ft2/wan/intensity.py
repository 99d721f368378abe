"""The motion-intensity network: how much a face and a body move, added to the time embedding.

FantasyTalking (arXiv 2504.04842) names its parts: MLP layers, a ResNet layer, average pooling, sum
with the timestep embedding. Their sizes and order are ours; it was never released.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ft2.wan.spec import MotionSpec

NEUTRAL = 0.5
"""The strength of the training set's median clip."""

KNOTS = 65


class MotionIntensity(nn.Module):
    """omega in [0, 1] of face and body -> an embedding that is zero before training."""

    knots: Tensor

    def __init__(self, spec: MotionSpec, out_features: int) -> None:
        """Create the network; ``knots`` are the strengths at evenly spaced omegas."""
        super().__init__()
        self.inputs = 2 if spec.body else 1
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(1, spec.dim), nn.SiLU(), nn.Linear(spec.dim, spec.dim))
            for _ in range(self.inputs)
        )
        self.norm1, self.norm2 = nn.GroupNorm(8, spec.dim), nn.GroupNorm(8, spec.dim)
        self.conv1 = nn.Conv1d(spec.dim, spec.dim, 3, padding=1)
        self.conv2 = nn.Conv1d(spec.dim, spec.dim, 3, padding=1)
        self.out = nn.Linear(spec.dim, out_features)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("knots", torch.linspace(0, 1, KNOTS).repeat(self.inputs, 1).double())

    def forward(self, omega: Tensor) -> Tensor:
        """Return what is added to the time embedding, float32 [B, out], of omega [B, 2]."""
        with torch.autocast(omega.device.type, enabled=False):
            columns = omega[:, : self.inputs].float().split(1, 1)
            x = torch.stack([mlp(one) for mlp, one in zip(self.mlps, columns, strict=True)], 2)
            rest = self.conv1(F.silu(self.norm1(x)))
            x = x + self.conv2(F.silu(self.norm2(rest)))
            out: Tensor = self.out(x.mean(2))
        return out

    def set_range(self, strengths: NDArray[np.floating]) -> None:
        """Take the strengths [N, 2] of a training set as the measure; nan is unknown."""
        for index in range(self.inputs):
            if (knots := strength_knots(strengths[:, index])) is not None:
                self.knots[index] = torch.from_numpy(knots)

    def omega(self, strengths: NDArray[np.floating]) -> Tensor:
        """Return omega in [0, 1], [N, 2], of strengths [N, 2]; unknown ones are neutral."""
        found = np.full((len(strengths), 2), NEUTRAL)
        for index in range(self.inputs):
            found[:, index] = ranks(strengths[:, index], self.knots[index].cpu().numpy())
        return torch.from_numpy(found).float()


def strength_knots(strengths: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """Return the strengths [KNOTS] at evenly spaced ranks of a set [N]; None if none is known."""
    known = strengths[~np.isnan(strengths)]
    return np.quantile(known, np.linspace(0, 1, KNOTS)) if len(known) else None


def ranks(
    strengths: NDArray[np.floating], knots: NDArray[np.floating] | None
) -> NDArray[np.float64]:
    """Return omega in [0, 1] of strengths [N]: their rank in the set that the knots describe.

    0 is the stillest clip, 0.5 the median, 1 the liveliest; unknown (nan) ones are neutral. The
    paper says "normalised to [0, 1]"; by minimum and maximum one broken clip would be all of it.
    """
    if knots is None:
        return np.full(len(strengths), NEUTRAL)
    shares = np.linspace(0, 1, len(knots))
    above = np.interp(strengths, knots, shares)
    below = 1 - np.interp(-strengths, -knots[::-1], shares)
    found = (above + below) / 2  # in the middle of equal ones
    return np.where(np.isnan(strengths), NEUTRAL, found)
