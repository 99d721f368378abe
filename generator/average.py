"""The moving average of the weights that are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of a module's trainable weights, with a warm-up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start from the current weights."""
        self.decay, self.count = decay, 0
        self.tensors = {
            name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the current weights: by ``1 - min(decay, (1 + n) / (10 + n))``."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        current = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self.tensors.values()), [current[name] for name in self.tensors], 1 - decay
        )

    def load(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Restore what was saved."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
        self.count = count

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into a module."""
        current = dict(module.named_parameters())
        for name, value in self.tensors.items():
            current[name].copy_(value)
