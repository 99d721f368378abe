"""Do the experts pull the same way? The cosine of their outputs in each layer.

An expert adds ``B_k A_k x`` to what a linear gives. With ``h_k = A_k x`` over tokens the product of
two experts' outputs is a sum in rank space, so that no output is made::

    <B_k A_k x, B_j A_j x> = sum((h_k^T h_j) * (B_k^T B_j))

A layer's linears are taken together, as one long output. What the linears read is what they read in
the base without experts, on held-out pairs at the fixed noise levels of the evaluation.
"""

import statistics
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ft2.engine import autocast
from ft2.flow import TIMESTEP_SCALE, add_noise
from ft2.lora import FusedLinear, fused_linears
from ft2.runs import RunDir, write_json
from ft2.tlpo.config import StageConfig
from ft2.tlpo.data import PairData
from ft2.tlpo.draws import evaluation_noise
from ft2.tlpo.probes import block_of
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel

CONFLICT_FILE = "conflict.json"

PAIRS = 4
"""Held-out pairs that are looked at, at most; of each both sides."""


def record_conflict(
    run: RunDir, model: TalkingModel, data: PairData, config: StageConfig, experts: Sequence[str]
) -> dict[str, float]:
    """Write ``conflict.json`` (`expert_conflict`); return the mean cosine of each two experts."""
    found = expert_conflict(model, data, config, experts)
    if run.writes:
        write_json(run.path / CONFLICT_FILE, found)
    cosine: dict[str, list[list[float]]] = found.get("cosine", {})
    return {name: statistics.fmean(x for row in rows for x in row) for name, rows in cosine.items()}


@torch.no_grad()
def expert_conflict(
    model: TalkingModel, data: PairData, config: StageConfig, experts: Sequence[str]
) -> dict[str, Any]:
    """Return how alike the installed experts' outputs are, before a gate is trained.

    Args:
        model: The base with its experts, in the order of ``experts``.
        data: Held-out pairs.
        config: Gives noise levels, seed and precision.
        experts: Their names.

    Returns:
        ``pairs`` that were looked at, ``timesteps`` and ``cosine``: "A and B" to [layers][levels],
        each in [-1, 1], 0 where an expert does nothing. Only ``pairs`` if there is nothing to do.
    """
    count = min(len(data), PAIRS)
    if not count or len(experts) < 2:
        return {"pairs": 0}
    levels = config.loop.eval_sigmas
    table = torch.stack([
        _cosines(model, data, config, count, number) for number in range(len(levels))
    ])  # fmt: skip
    cosine = {
        f"{a} and {b}": table[..., i, j].t().tolist()
        for (i, a), (j, b) in combinations(enumerate(experts), 2)
    }
    return {"pairs": count, "timesteps": [TIMESTEP_SCALE * x for x in levels], "cosine": cosine}


def _cosines(
    model: TalkingModel, data: PairData, config: StageConfig, count: int, number: int
) -> Tensor:
    """Return the cosines at one noise level, [layers, K, K]."""
    sums: dict[int, Tensor] = {}
    layers = list(fused_linears(model.dit))
    handles = [
        layer.register_forward_pre_hook(_adder(layer, sums, block_of(name)))
        for name, layer in layers
    ]
    try:
        for index in range(count):
            _pass_both_sides(model, data, config, index, number)
    finally:
        for handle in handles:
            handle.remove()
    products = torch.stack([sums[block] for block in sorted(sums)])
    norms = products.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    return products / (norms[:, :, None] * norms[:, None, :]).clamp_min(1e-30)


def _pass_both_sides(
    model: TalkingModel, data: PairData, config: StageConfig, index: int, number: int
) -> None:
    """Run the base on both sides of a pair at one noise level."""
    device, levels = model.device, config.loop.eval_sigmas
    batch = data.batch([index], device)
    noise = evaluation_noise(
        config.loop.seed, data.pairs[index].pair_id, len(levels), batch.chosen.shape[1:]
    )[number : number + 1].to(device)
    sigma = torch.tensor([levels[number]] * 2, device=device)
    clean = torch.cat((batch.chosen, batch.rejected))
    noisy = add_noise(clean, noise.expand_as(clean), sigma)
    with autocast(config.engine, device.type):
        model.velocity(noisy, sigma, Conditioning.cat([batch.cond, batch.cond]))


def _adder(
    layer: FusedLinear, sums: dict[int, Tensor], block: int
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that adds a linear's products to those of its block, [K, K]."""
    up = (layer.lora_B.t() @ layer.lora_B) * layer.scaling**2
    shape = (layer.num_experts, layer.rank) * 2

    def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        with torch.autocast(given[0].device.type, enabled=False):
            hidden = given[0].to(layer.lora_A).flatten(0, -2) @ layer.lora_A.t()
            products = ((hidden.t() @ hidden) * up).reshape(shape).sum((1, 3)).double().cpu()
        sums[block] = sums.get(block, torch.zeros_like(products)) + products

    return add
