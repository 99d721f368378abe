"""A problem with a known answer for gates: Gaussian latents, experts with known faults, float64.

Latents of the base are N(0, diag(s^2)), those that are preferred N(m, ...); the first half of the
coordinates is coarse (s = 1), the second fine (s = 0.2). The velocity of a Gaussian is known in
closed form, and what the preferred shift m adds to it at noise level sigma is
``-m sigma / ((1 - sigma)^2 s^2 + sigma^2)``: most at middle noise for the coarse half, at low noise
for the fine one. Two experts (`ft2.lora.FusedLinear`) on a few layers make that shift more or less
well; gates (`ft2.tlpo.gate.FusionGate`) over them are trained by Flow-DPO from the same start, and
judged by the loss on fresh pairs. Without timestep and layer a gate is the best static merge.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ft2.flow import add_noise, velocity_target
from ft2.lora import FusedLinear
from ft2.tlpo.dpo import PairErrors, masked_error, preference_loss
from ft2.tlpo.gate import FusionGate

DIM, BETA = 8, 4.0
SCALE = torch.tensor([1.0] * (DIM // 2) + [0.2] * (DIM // 2), dtype=torch.float64)
HALF = torch.tensor([[1.0] * (DIM // 2) + [0.0] * (DIM // 2)], dtype=torch.float64)
HALVES = torch.cat((HALF, 1 - HALF))
FEATURES = 3
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Chosen, rejected and noise [count, DIM], sigma [count]."""


@dataclass(frozen=True)
class Problem:
    """Experts, pairs, and a gate over them."""

    experts: Literal["aware", "blind", "windows", "layers", "mixed"] = "aware"
    """``aware``: by what is wanted at each level; ``blind``: by the mean of it at every level;
    ``windows``: as wanted where it was trained (expert 0 above noise 0.5, expert 1 below), and by
    half as much the wrong way elsewhere; ``layers``: expert k as wanted on every second layer, the
    wrong way (by half) on the others; ``mixed``: on every layer right in one half of the noise
    levels and wrong in the other, which half is drawn for each layer and expert."""
    form: Literal["figure", "softmax", "sigmoid"] = "figure"
    timestep: bool = True
    per_layer: bool = True
    layers: int = 2
    shift: float = 0.5
    """The preferred shift in units of each coordinate's deviation: smaller is harder."""
    flipped: float = 0.0
    """Share of training pairs whose sides are exchanged."""
    count: int = 0
    """Training pairs; 0 draws fresh ones in every step."""
    waves: int = 9
    """Cosines of the noise level that the gate reads."""
    decay: float = 0.0
    """AdamW's weight decay of W, towards weights that do not depend on the noise level."""
    steps: int = 200
    seed: int = 0


def train(problem: Problem) -> float:
    """Train one gate and return its gain on fresh pairs: ln 2 - loss, whose start is the merge."""
    generator = torch.Generator().manual_seed(problem.seed)
    layers = make_experts(problem)
    gate = FusionGate(
        problem.layers, 2, problem.waves, form=problem.form, per_layer=problem.per_layer
    ).double()
    groups = [{"params": [gate.weight], "weight_decay": problem.decay}, {"params": [gate.bias]}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.0)
    known = draw_pairs(problem, problem.count, generator) if problem.count else None
    for _ in range(problem.steps):
        loss = loss_of(problem, layers, gate, batch_of(problem, known, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clean = replace(problem, flipped=0.0)
    with torch.no_grad():
        fresh = draw_pairs(clean, 20_000, generator.manual_seed(991))
        return math.log(2) - float(loss_of(problem, layers, gate, fresh))


def batch_of(problem: Problem, known: Pairs | None, generator: torch.Generator) -> Pairs:
    """Return 128 pairs of a step: fresh, or of those that there are, under fresh noise."""
    drawn = draw_pairs(problem, 128, generator)
    if known is None:
        return drawn
    place = torch.randint(len(known[0]), (128,), generator=generator)
    return known[0][place], known[1][place], drawn[2], drawn[3]


def draw_pairs(problem: Problem, count: int, generator: torch.Generator) -> Pairs:
    """Draw pairs, of which a share is labelled the wrong way."""

    def normal() -> Tensor:
        return torch.randn(count, DIM, generator=generator, dtype=torch.float64)

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64)

    better, worse = (normal() + problem.shift) * SCALE, normal() * SCALE
    noise, sigma, wrong = normal(), 0.02 + 0.98 * uniform(), uniform()[:, None] < problem.flipped
    return torch.where(wrong, worse, better), torch.where(wrong, better, worse), noise, sigma


def loss_of(problem: Problem, layers: list[FusedLinear], gate: FusionGate, pairs: Pairs) -> Tensor:
    """Return the preference loss of a gate against the merge at one half."""
    chosen, rejected, noise, sigma = pairs
    start = torch.full((len(sigma), problem.layers, 2), 0.5, dtype=torch.float64)
    errors = []
    for weights in (gate(tau(problem, sigma)), start):
        for clean in (chosen, rejected):
            noisy = add_noise(clean, noise, sigma)
            moved = velocity(problem, layers, noisy, sigma, weights)
            errors.append(masked_error(moved, velocity_target(clean, noise)))
    return preference_loss(PairErrors(*errors), BETA)[0]


def tau(problem: Problem, sigma: Tensor) -> Tensor:
    """Return the gate's input, [B, waves]; constant without the timestep."""
    waves = [torch.cos(math.pi * j * sigma) for j in range(problem.waves)]
    found = torch.stack(waves, dim=1)
    return found if problem.timestep else torch.ones_like(found)


def velocity(
    problem: Problem, layers: list[FusedLinear], noisy: Tensor, sigma: Tensor, gate: Tensor
) -> Tensor:
    """Return the velocity with gate [B, layers, 2]; gates act per sample."""
    moved = base_velocity(noisy, sigma)
    for number, layer in enumerate(layers):
        seen = features(problem, sigma, number)
        moved = moved + layer(seen[:, None], gate[:, number])[:, 0]
    return moved


def make_experts(problem: Problem) -> list[FusedLinear]:
    """Return two rank-1 experts on each layer: expert k moves half k of the coordinates."""
    levels = torch.linspace(0.02, 1, 200, dtype=torch.float64)
    mean = wanted(problem, levels).mean(0)
    layers = []
    for number in range(problem.layers):
        layer = FusedLinear(nn.Linear(FEATURES, DIM, bias=False).double(), 2, 1, 1.0)
        down, up = torch.zeros(2, FEATURES).double(), HALVES.T.clone() / problem.layers
        for k in range(2):
            if problem.experts == "blind":
                down[k, 2] = mean[k]
            elif problem.experts == "layers":
                down[k, k] = 2.0 if number % 2 == k else -1.0
            else:
                down[k, k] = 1.0
        with torch.no_grad():
            layer.weight.zero_()
            layer.lora_A.copy_(down)
            layer.lora_B.copy_(up)
        layers.append(layer.requires_grad_(False))
    return layers


def features(problem: Problem, sigma: Tensor, layer: int) -> Tensor:
    """Return what the experts of a layer read: a strength for each of them, and 1, [B, 3]."""
    strength = wanted(problem, sigma)
    if problem.experts in ("windows", "mixed"):
        right = torch.stack((sigma > 0.5, sigma <= 0.5), dim=1)
        if problem.experts == "mixed":
            drawn = torch.Generator().manual_seed(1000 * problem.seed + layer)
            right = right ^ (torch.rand(2, generator=drawn) < 0.5)
        strength = strength * (1.5 * right - 0.5)  # the wrong way, by half, elsewhere
    return torch.cat((strength, torch.ones_like(strength[:, :1])), dim=1)


def wanted(problem: Problem, sigma: Tensor) -> Tensor:
    """Return what the preferred shift adds in each half: [B, 2] strengths of the two directions."""
    full = -problem.shift * SCALE * sigma[:, None] / denominator(sigma)
    return full @ HALVES.T / HALVES.sum(1)


def base_velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
    """Return the exact velocity of the base, [B, DIM]."""
    level = sigma[:, None]
    return noisy * (level - (1 - level) * SCALE**2) / denominator(sigma)


def denominator(sigma: Tensor) -> Tensor:
    """Return ``(1 - sigma)^2 s^2 + sigma^2``, [B, DIM]."""
    return ((1 - sigma)[:, None] * SCALE) ** 2 + sigma[:, None] ** 2


def gains(seeds: int, make: Callable[[int], Problem]) -> dict[str, float]:
    """Return mean and standard deviation of the gain over training seeds."""
    return mean_and_std([train(make(seed)) for seed in range(seeds)])


def mean_and_std(values: list[float]) -> dict[str, float]:
    """Return both of some figures."""
    found = torch.tensor(values, dtype=torch.float64)
    return {"mean": float(found.mean()), "std": float(found.std())}
