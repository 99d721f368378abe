"""The fusion gate: how strongly each expert acts at each noise level in each layer.

The authors' figure draws projection -> softmax -> bias, fed by the timestep alone, one set of
weights per DiT layer for its q, k, v and feed-forward linears::

    w_l(sigma) = softmax(W_l tau(sigma)) + b_l        l = 1..layers, in R^K

which is LoRA-Flow's gate (arXiv 2402.11455, eq. 4) with the timestep in place of the hidden state.
The bias comes after the softmax, so weights may be negative and sum to 1 + sum(b).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ft2.flow import TIMESTEP_SCALE

GateInput = Literal["embedding", "sinusoid"]


class FusionGate(nn.Module):
    """softmax(W tau + 0) + b per layer, kept and computed in float32 (float64 stays)."""

    def __init__(
        self, num_layers: int, num_experts: int, input_dim: int, bias_init: float = 0.0
    ) -> None:
        """Start with ``W = 0``: every expert has the weight ``1/K + bias_init`` everywhere.

        Args:
            num_layers: DiT blocks.
            num_experts: K.
            input_dim: Width of tau.
            bias_init: Start of every bias; for K = 3, 0 gives 1/3 each, 1/3 gives 2/3, 2/3 gives 1.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, num_experts, input_dim))
        self.bias = nn.Parameter(torch.full((num_layers, num_experts), float(bias_init)))

    def forward(self, tau: Tensor) -> Tensor:
        """Return the weights [B, layers, K] for timestep features tau [B, D]."""
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        with torch.autocast(tau.device.type, enabled=False):
            logits = torch.einsum("lkd,bd->blk", self.weight.to(wide), tau.to(wide))
            return torch.softmax(logits, dim=-1) + self.bias.to(wide)


@torch.no_grad()
def timestep_features(dit: nn.Module, sigma: Tensor, kind: GateInput = "embedding") -> Tensor:
    """Return tau(sigma) in float32, [B, D], from the transformer's own (frozen) embedder.

    Args:
        dit: A Wan transformer with diffusers' ``condition_embedder``.
        sigma: Noise levels in [0, 1], [B].
        kind: ``embedding``: Wan's time embedding ``e`` after the MLP (5120 wide in 14B);
            ``sinusoid``: the 256-wide sinusoidal embedding before it.
    """
    embedder = dit.get_submodule("condition_embedder")
    with torch.autocast(sigma.device.type, enabled=False):
        wave: Tensor = embedder.get_submodule("timesteps_proj")(TIMESTEP_SCALE * sigma.float())
        if kind == "sinusoid":
            return wave.float()
        mlp = embedder.get_submodule("time_embedder")
        dtype = next(mlp.parameters()).dtype
        feature: Tensor = mlp(wave.to(dtype))
        return feature.float()


def features_dim(dit: nn.Module, kind: GateInput = "embedding") -> int:
    """Return the width of `timestep_features`, without computing it (works on the meta device)."""
    mlp = dit.get_submodule("condition_embedder.time_embedder")
    wanted = "linear_1.weight" if kind == "sinusoid" else "linear_2.weight"
    axis = 1 if kind == "sinusoid" else 0
    return int(mlp.get_parameter(wanted).shape[axis])


def constant_gate(batch: int, num_layers: int, weights: Sequence[float]) -> Tensor:
    """Return the same weights for every sample and layer, float32 [batch, num_layers, K]."""
    return torch.tensor(weights, dtype=torch.float32).expand(batch, num_layers, len(weights))


def softmax_entropy(gate: FusionGate, tau: Tensor) -> float:
    """Return the mean entropy of the softmax part over ln K: 1 uniform, 0 one expert alone."""
    share = (gate(tau) - gate.bias.float()).detach()
    entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
    return float(entropy.mean() / torch.log(torch.tensor(float(share.shape[-1]))))
