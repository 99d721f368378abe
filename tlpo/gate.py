"""The fusion gate: how strongly each expert acts at each noise level in each layer.

The authors' figure draws projection -> softmax -> bias, fed by the timestep alone, one set of
weights per DiT layer for its q, k, v and feed-forward linears::

    w_l(sigma) = softmax(W_l tau(sigma)) + b_l        l = 1..layers, in R^K

which is LoRA-Flow's gate (arXiv 2402.11455, eq. 4) with the timestep in place of the hidden state.
The bias comes after the softmax, so weights may be negative and sum to 1 + sum(b). The other forms
are there to compare: see `ft2.tlpo.options.GateConfig`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ft2.flow import TIMESTEP_SCALE
from ft2.lora import gate_slots
from ft2.tlpo.options import GateConfig

GateInput = Literal["embedding", "sinusoid", "none"]
GateForm = Literal["figure", "softmax", "sigmoid", "mlp"]


class FusionGate(nn.Module):
    """Expert weights from timestep features, kept and computed in float32 (float64 stays).

    Attributes:
        form: How logits become weights.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        input_dim: int,
        bias_init: float = 0.0,
        *,
        form: GateForm = "figure",
        slots: int = 1,
        per_layer: bool = True,
        temperature: float = 1.0,
        hidden_dim: int = 256,
    ) -> None:
        """Start with ``W = 0``: every expert has the weight ``1/K + bias_init`` everywhere.

        Args:
            num_layers: DiT blocks.
            num_experts: K.
            input_dim: Width of tau.
            bias_init: Start of every bias; for K = 3, 0 gives 1/3 each, 1/3 gives 2/3, 2/3 gives 1.
            form: ``figure``, ``softmax`` (bias inside, temperature), ``sigmoid`` (starts at 1/2),
                ``mlp`` (a hidden layer before the figure's form).
            slots: Sets of weights in a layer, one for each kind of adapted linear; 1 for all.
            per_layer: False shares one layer's weights among all.
            temperature: Divides the logits of ``softmax``.
            hidden_dim: Width of the hidden layer of ``mlp``.
        """
        super().__init__()
        self.form = form
        self.num_layers, self.slots, self.temperature = num_layers, slots, temperature
        rows = (num_layers if per_layer else 1) * slots
        width = hidden_dim if form == "mlp" else input_dim
        self.hidden = nn.Linear(input_dim, hidden_dim) if form == "mlp" else None
        self.weight = nn.Parameter(torch.zeros(rows, num_experts, width))
        self.bias = nn.Parameter(torch.full((rows, num_experts), float(bias_init)))

    def forward(self, tau: Tensor) -> Tensor:
        """Return the weights for timestep features tau [B, D].

        Returns:
            [B, layers, K], or [B, layers, slots, K] with several slots.
        """
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        with torch.autocast(tau.device.type, enabled=False):
            logits, bias = self._logits(tau.to(wide)), self.bias.to(wide)
            if self.form == "softmax":
                weights = torch.softmax((logits + bias) / self.temperature, dim=-1)
            elif self.form == "sigmoid":
                weights = torch.sigmoid(logits + bias)
            else:
                weights = torch.softmax(logits, dim=-1) + bias
        return self._by_layer(weights)

    def shares(self, tau: Tensor) -> Tensor:
        """Return the part of the weights that competes: the softmax, or for sigmoid the weights.

        The shape is that of `forward`.
        """
        weights: Tensor = self(tau)
        if self.form in ("figure", "mlp"):
            weights = weights - self._by_layer(self.bias[None].to(weights))
        return weights

    def _logits(self, tau: Tensor) -> Tensor:
        features = tau if self.hidden is None else nn.functional.silu(self.hidden(tau))
        return torch.einsum("lkd,bd->blk", self.weight.to(features), features)

    def _by_layer(self, weights: Tensor) -> Tensor:
        """Give every layer its rows of [B, rows, K]."""
        if self.slots > 1:
            weights = weights.unflatten(1, (-1, self.slots))
        return weights.expand(-1, self.num_layers, *weights.shape[2:])


def make_gate(config: GateConfig, dit: nn.Module, num_experts: int) -> FusionGate:
    """Return the configured gate for a transformer, in its initial state.

    Args:
        config: Form, input and start.
        dit: Wan transformer; with ``per_linear`` its experts must be installed.
        num_experts: K.
    """
    return FusionGate(
        len(dit.get_submodule("blocks")),  # type: ignore[arg-type]
        num_experts,
        features_dim(dit, config.input),
        config.bias_init,
        form=config.form,
        slots=len(gate_slots(dit)) if config.per_linear else 1,
        per_layer=config.per_layer,
        temperature=config.temperature,
        hidden_dim=config.hidden_dim,
    )


@torch.no_grad()
def timestep_features(dit: nn.Module, sigma: Tensor, kind: GateInput = "embedding") -> Tensor:
    """Return tau(sigma) in float32, [B, D], from the transformer's own (frozen) embedder.

    Args:
        dit: A Wan transformer with diffusers' ``condition_embedder``.
        sigma: Noise levels in [0, 1], [B].
        kind: ``embedding``: Wan's time embedding ``e`` after the MLP (5120 wide in 14B);
            ``sinusoid``: the 256-wide sinusoidal embedding before it; ``none``: a constant 1.
    """
    if kind == "none":
        return torch.ones(len(sigma), 1, device=sigma.device)
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
    if kind == "none":
        return 1
    mlp = dit.get_submodule("condition_embedder.time_embedder")
    wanted = "linear_1.weight" if kind == "sinusoid" else "linear_2.weight"
    axis = 1 if kind == "sinusoid" else 0
    return int(mlp.get_parameter(wanted).shape[axis])


def constant_gate(batch: int, num_layers: int, weights: Sequence[float]) -> Tensor:
    """Return the same weights for every sample and layer, float32 [batch, num_layers, K]."""
    return torch.tensor(weights, dtype=torch.float32).expand(batch, num_layers, len(weights))


class GateTable(nn.Module):
    """Expert weights that are constant within bins of the noise level: a hard switch, or a merge.

    Attributes:
        edges: Noise levels between the bins, rising, [bins - 1].
        weights: [bins, layers, K], float32.
    """

    edges: Tensor
    weights: Tensor

    def __init__(self, edges: Tensor, weights: Tensor) -> None:
        """Hold the table; there is one more bin than edges."""
        super().__init__()
        if len(weights) != len(edges) + 1:
            raise ValueError(f"{len(weights)} bins for {len(edges)} edges")
        self.register_buffer("edges", edges.float())
        self.register_buffer("weights", weights.float())

    def forward(self, sigma: Tensor) -> Tensor:
        """Return the weights [B, layers, K] at noise levels sigma [B]."""
        return self.weights[torch.bucketize(sigma.float(), self.edges, right=True)]


def share_entropy(shares: Tensor) -> float:
    """Return the mean entropy of shares [..., K] over ln K: 1 uniform, 0 one expert alone."""
    part = shares / shares.sum(-1, keepdim=True)
    entropy = -(part * part.clamp_min(1e-12).log()).sum(-1)
    return float(entropy.mean() / torch.log(torch.tensor(float(shares.shape[-1]))))
