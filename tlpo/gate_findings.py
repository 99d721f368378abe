"""What a trained gate is like: its weights over noise levels and layers, their spread."""

import torch
from torch import Tensor

from ft2.flow import TIMESTEP_SCALE
from ft2.report.data import GateMap
from ft2.tlpo.experts import ExpertName
from ft2.tlpo.gate import FusionGate, GateInput, share_entropy, timestep_features
from ft2.wan.model import TalkingModel

_LEVELS = torch.linspace(0.02, 1, 50)
"""Noise levels at which a trained gate is looked at."""


def levels(model: TalkingModel, kind: GateInput) -> Tensor:
    """Return the timestep features [50, D] of the noise levels at which a gate is looked at."""
    return timestep_features(model.dit, _LEVELS.to(model.device), kind)


@torch.no_grad()
def average(gate: FusionGate, tau: Tensor) -> list[list[float]]:
    """Return the gate's mean weights over noise levels (and a layer's linears), [layers][K]."""
    table = gate(tau).mean(0)
    mean: list[list[float]] = (table.mean(1) if table.ndim == 3 else table).tolist()
    return mean


@torch.no_grad()
def gate_map(gate: FusionGate, tau: Tensor, experts: list[ExpertName]) -> GateMap:
    """Return the gate's weights for the heat map (the mean over a layer's linears)."""
    table = gate(tau[1::2]).cpu()
    table = table.mean(2) if table.ndim == 4 else table
    weights: dict[str, list[list[float]]] = {
        name: table[..., k].t().tolist() for k, name in enumerate(experts)
    }
    return GateMap((TIMESTEP_SCALE * _LEVELS[1::2]).tolist(), weights)


def gate_findings(gate: FusionGate, tau: Tensor, experts: list[ExpertName]) -> dict[str, object]:
    """Return mean weights, entropy and total strength of a trained gate."""
    with torch.no_grad():
        table, share = gate(tau).cpu(), gate.shares(tau).cpu()
    axes = tuple(range(table.ndim - 1))
    greatest = dict(zip(experts, share.amax(tuple(range(share.ndim - 1))).tolist(), strict=True))
    total = table.sum(-1)
    return {
        "mean_weights": dict(zip(experts, table.mean(axes).tolist(), strict=True)),
        "entropy": share_entropy(share),
        "greatest_share": greatest,
        "total_weight": [float(total.min()), float(total.mean()), float(total.max())],
    }
