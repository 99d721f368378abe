"""What a stage looks at in its own weights while it trains: an expert's size, a gate's spread."""

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ft2.lora import FusedLinear, fused_linears
from ft2.tlpo.gate import FusionGate, share_entropy

TENTHS = 10


class Probe(Protocol):
    """Looks at weights that are trained, which are whole and equal on all ranks."""

    each_step: bool
    """Whether there is something to see after every step, not only at evaluations."""

    def look(self, *, evaluation: bool) -> dict[str, object]:
        """Return metrics by name; the dear ones only at evaluations."""


class ExpertProbe:
    """Size of an expert by block: |B|, and |BA| over |W|, scaled as the expert acts."""

    each_step = False

    def __init__(self, dit: nn.Module) -> None:
        """Take the norms of the frozen weights now: ZeRO-3 will have them in parts."""
        self._layers: dict[int, list[FusedLinear]] = {}
        self._frozen: dict[int, float] = {}
        for name, layer in fused_linears(dit):
            block = block_of(name)
            self._layers.setdefault(block, []).append(layer)
            square = float(layer.weight.detach().float().square().sum())
            self._frozen[block] = self._frozen.get(block, 0.0) + square

    @torch.no_grad()
    def look(self, *, evaluation: bool) -> dict[str, object]:
        """Return ``norm_b`` and ``weight_change`` (|BA| / |W|), and ``blocks`` with both."""
        if not evaluation:
            return {}
        order = sorted(self._layers)
        squares = [[_squares(layer) for layer in self._layers[block]] for block in order]
        up = [sum(b for b, _ in block) for block in squares]
        product = [sum(ba for _, ba in block) for block in squares]
        frozen = [self._frozen[block] for block in order]
        return {
            "norm_b": sum(up) ** 0.5,
            "weight_change": (sum(product) / sum(frozen)) ** 0.5,
            "blocks": {
                "norm_b": [value**0.5 for value in up],
                "weight_change": [
                    (a / b) ** 0.5 for a, b in zip(product, frozen, strict=True)
                ],
            },
        }  # fmt: skip


def block_of(name: str) -> int:
    """Return the block of a linear: 3 for ``blocks.3.attn1.to_q``, -1 outside of blocks."""
    found = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _squares(layer: FusedLinear) -> tuple[float, float]:
    """Return |B|^2 and |BA|^2, the latter as ``tr((B^T B)(A A^T))`` in rank space.

    Both are of all experts together, which is meant for one; |BA| is scaled by alpha / rank.
    """
    down, up = layer.lora_A.float(), layer.lora_B.float()
    product = ((up.t() @ up) * (down @ down.t())).sum() * layer.scaling**2
    return float(up.square().sum()), max(0.0, float(product))


class GateProbe:
    """Spread of a gate over experts, layers and noise levels."""

    each_step = True

    def __init__(self, gate: FusionGate, tau: Tensor, experts: Sequence[str]) -> None:
        """Look at ``gate`` at fixed timestep features tau [levels, D], by rising noise level."""
        self._gate, self._tau, self._experts = gate, tau, list(experts)

    @torch.no_grad()
    def look(self, *, evaluation: bool) -> dict[str, object]:
        """Return means over layers and levels, and at evaluations all weights by tenth and layer.

        Returns:
            ``gate_sum`` (of an expert's weights, the mean), ``gate_weight_NAME``; where weights
            compete, ``gate_entropy`` of the softmax part over ln K, ``gate_share``, the greatest
            mean share of an expert, ``gate_share_of``, which that is, and ``gate_share_max``, the
            greatest share anywhere; ``gate_weights``: NAME to [layers][10].
        """
        weights = self._gate(self._tau).double()
        mean = weights.flatten(0, -2).mean(0)
        found: dict[str, object] = {"gate_sum": float(mean.sum())}
        for name, value in zip(self._experts, mean.tolist(), strict=True):
            found[f"gate_weight_{name}"] = value
        if self._gate.form != "sigmoid" and len(self._experts) > 1:
            shares = self._gate.shares(self._tau)
            greatest, place = shares.flatten(0, -2).mean(0).max(0)
            found["gate_entropy"] = share_entropy(shares)
            found["gate_share"] = float(greatest)
            found["gate_share_max"] = float(shares.max())
            found["gate_share_of"] = self._experts[int(place)]
        if evaluation:
            found["gate_weights"] = self._by_tenth(weights)
        return found

    def _by_tenth(self, weights: Tensor) -> dict[str, list[list[float]]]:
        """Return each expert's mean weights in tenths of the levels, [layers][10]."""
        table = weights.mean(2) if weights.ndim == 4 else weights
        tenths = torch.stack([part.mean(0) for part in table.tensor_split(TENTHS)], dim=1)
        return {name: tenths[..., k].tolist() for k, name in enumerate(self._experts)}
