"""When does a gate over timestep and layer pay? A problem with a known answer, and nano experts.

    python benchmarks/gate_study.py [--table DIR --dataset DIR --cache DIR]

**The toy** (float64). Latents of the base are N(0, diag(s^2)), those that are preferred N(m, ...);
its first half of coordinates is coarse (s = 1), the second fine (s = 0.2). The velocity of a
Gaussian is known in closed form, and what the preferred shift m adds to it at noise level sigma is
``-m sigma / ((1 - sigma)^2 s^2 + sigma^2)``: most at middle noise for the coarse half, at low noise
for the fine one. Two experts (`ft2.lora.FusedLinear`) on two layers make that shift more or less
well;
gates (`ft2.tlpo.gate.FusionGate`) over them are trained by Flow-DPO from the same start, and judged
by the loss on fresh pairs. Without timestep and layer a gate is the best static merge.

**Nano** (with ``--table``, the output of `ft2 tlpo compare`): the loss of held-out fusion pairs by
noise level and strength of the merge. Where one strength is best at all levels, no gate can gain.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import header
from torch import Tensor, nn

from ft2.flow import add_noise, velocity_target
from ft2.lora import FusedLinear
from ft2.tlpo.dpo import PairErrors, implicit_accuracy, masked_error, preference_loss
from ft2.tlpo.gate import FusionGate

RESULTS = Path(__file__).parent / "results" / "gate_study.json"
DIM, LAYERS, BETA, SHIFT = 8, 2, 4.0, 0.5
SCALE = torch.tensor([1.0] * (DIM // 2) + [0.2] * (DIM // 2), dtype=torch.float64)
HALF = torch.tensor([[1.0] * (DIM // 2) + [0.0] * (DIM // 2)], dtype=torch.float64)
HALVES = torch.cat((HALF, 1 - HALF))
FEATURES = 6
Effect = Callable[[Tensor], Tensor]


def denominator(sigma: Tensor) -> Tensor:
    """Return ``(1 - sigma)^2 s^2 + sigma^2``, [B, DIM]."""
    return ((1 - sigma)[:, None] * SCALE) ** 2 + sigma[:, None] ** 2


def base_velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
    """Return the exact velocity of the base, [B, DIM]."""
    level = sigma[:, None]
    return noisy * (level - (1 - level) * SCALE**2) / denominator(sigma)


def wanted(sigma: Tensor) -> Tensor:
    """Return what the preferred shift adds in each half: [B, 2] strengths of the two directions."""
    full = -SHIFT * SCALE * sigma[:, None] / denominator(sigma)
    return full @ HALVES.T / HALVES.sum(1)


def features(sigma: Tensor) -> Tensor:
    """Return what the experts read: wanted strengths, 1, and halves of the noise levels, [B, 6]."""
    high = (sigma > 0.5).to(sigma)
    return torch.stack([*wanted(sigma).T, torch.ones_like(sigma), high, 1 - high, sigma], dim=1)


def experts(kind: str) -> list[FusedLinear]:
    """Return two rank-1 experts on each layer: expert k moves half k of the coordinates.

    ``aware``: by what is wanted at each level; ``blind``: by the mean of it at every level;
    ``windows``: as wanted where it was trained (expert 0 above noise 0.5, expert 1 below), and by
    half as much the wrong way elsewhere; ``layers``: expert k as wanted on layer k, the wrong way
    (by half) on the other.
    """
    levels = torch.linspace(0.02, 1, 200, dtype=torch.float64)
    mean = wanted(levels).mean(0)
    layers = []
    for number in range(LAYERS):
        layer = FusedLinear(nn.Linear(FEATURES, DIM, bias=False).double(), 2, 1, 1.0)
        down, up = torch.zeros(2, FEATURES).double(), HALVES.T.clone() / LAYERS
        for k in range(2):
            if kind == "blind":
                down[k, 2] = mean[k]
            elif kind == "layers":
                down[k, k] = 2.0 if number == k else -1.0
            else:
                down[k, k] = 1.0
        with torch.no_grad():
            layer.weight.zero_()
            layer.lora_A.copy_(down)
            layer.lora_B.copy_(up)
        layers.append(layer.requires_grad_(False))
    return layers


def velocity(
    layers: list[FusedLinear], kind: str, noisy: Tensor, sigma: Tensor, gate: Tensor
) -> Tensor:
    """Return the velocity with gate [B, LAYERS, 2]; gates act per sample."""
    seen = features(sigma)
    if kind == "windows":  # the wrong way outside the window of each expert
        trained = seen[:, 3:5]
        seen = torch.cat((seen[:, :2] * (1.5 * trained - 0.5), seen[:, 2:]), dim=1)
    moved = [layer(seen[:, None], gate[:, i])[:, 0] for i, layer in enumerate(layers)]
    return base_velocity(noisy, sigma) + sum(moved)


def tau(sigma: Tensor, timestep: bool) -> Tensor:
    """Return the gate's input, [B, 9]; constant without the timestep."""
    waves = [torch.cos(math.pi * j * sigma) for j in range(9)]
    found = torch.stack(waves, dim=1)
    return found if timestep else torch.ones_like(found)


def pairs(count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return chosen, rejected, noise [count, DIM] and sigma [count]."""

    def draw() -> Tensor:
        return torch.randn(count, DIM, generator=generator, dtype=torch.float64)

    sigma = 0.02 + 0.98 * torch.rand(count, generator=generator, dtype=torch.float64)
    return draw() * SCALE + SHIFT * SCALE, draw() * SCALE, draw(), sigma


def margin(layers: list[FusedLinear], kind: str, gates: list[Callable[[Tensor], Tensor]],
           data: tuple[Tensor, ...]) -> PairErrors:  # fmt: skip
    """Return errors of policy and reference (gates[0], gates[1]) on both sides."""
    chosen, rejected, noise, sigma = data
    found = []
    for gate in gates:
        for clean in (chosen, rejected):
            v = velocity(layers, kind, add_noise(clean, noise, sigma), sigma, gate(sigma))
            found.append(masked_error(v, velocity_target(clean, noise)))
    return PairErrors(*found)


def train(kind: str, timestep: bool, per_layer: bool, seed: int, steps: int) -> dict[str, float]:
    """Train one gate and return its loss and accuracy on fresh pairs."""
    layers = experts(kind)
    gate = FusionGate(LAYERS, 2, 9, per_layer=per_layer).double()  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)

    def policy(sigma: Tensor) -> Tensor:
        return gate(tau(sigma, timestep))

    def start(sigma: Tensor) -> Tensor:
        return torch.full((len(sigma), LAYERS, 2), 0.5, dtype=torch.float64)

    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        errors = margin(layers, kind, [policy, start], pairs(128, generator))
        loss, _ = preference_loss(errors, BETA)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        errors = margin(layers, kind, [policy, start], pairs(20_000, generator.manual_seed(991)))
        loss, _ = preference_loss(errors, BETA)
        return {
            "loss": float(loss),
            "accuracy": float(implicit_accuracy(*errors.differences()).mean()),
        }


GATES = {
    "static merge": (False, False),
    "without timestep": (False, True),
    "without layer": (True, False),
    "gate": (True, True),
}


def toy(steps: int, seeds: int) -> dict[str, Any]:
    """Return, for each kind of experts and gate, the gain ``ln 2 - loss`` over the start."""
    report: dict[str, Any] = {}
    for kind in ("aware", "blind", "windows", "layers"):
        for name, given in GATES.items():
            runs = [train(kind, *given, seed=seed, steps=steps) for seed in range(seeds)]
            gains = torch.tensor([math.log(2) - run["loss"] for run in runs])
            report.setdefault(kind, {})[name] = {
                "gain": float(gains.mean()),
                "gain_of_seeds": [round(float(gain), 4) for gain in gains],
                "accuracy": sum(run["accuracy"] for run in runs) / seeds,
            }
    return report


@torch.no_grad()
def nano(table: Path, dataset: Path, cache: Path, count: int) -> dict[str, Any]:
    """Return the mean loss of held-out fusion pairs by noise level and strength of the merge."""
    from ft2.config import load_config
    from ft2.runs import Silent
    from ft2.tlpo.cache import fill_cache, unique_clips
    from ft2.tlpo.config import FusionConfig
    from ft2.tlpo.data import PairData
    from ft2.tlpo.draws import evaluation_noise
    from ft2.tlpo.experts import install_policy_experts, ordered
    from ft2.tlpo.gate import constant_gate
    from ft2.tlpo.passes import pair_errors
    from ft2.tlpo.stage import prepare_model, read_view

    config = load_config(FusionConfig, "nano/fusion", [f"dataset={dataset}"])
    found = read_view(config, "fusion")[1][:count]
    model = prepare_model(None, config)
    data = PairData(found, fill_cache(unique_clips(found), cache, model, config.encoding, Silent()),
                    config.mask, None)  # fmt: skip
    folders = {d: table / f"expert-{d}" for d in ("motion", "lip", "quality")}
    install_policy_experts(model, ordered(folders))
    batch = data.batch(list(range(len(found))), torch.device("cpu"))
    levels, strengths = (0.2, 0.4, 0.6, 0.8, 0.95), (0.0, 1 / 3, 2 / 3, 1.0, 4 / 3, 2.0)
    noise = torch.stack([evaluation_noise(0, p.pair_id, 1, batch.chosen.shape[1:]) for p in found])
    report: dict[str, Any] = {"pairs": len(found), "levels": levels, "strengths": strengths}
    for who in ("all", "motion", "lip", "quality"):
        losses = []
        for level in levels:
            sigma = torch.full((len(found), 1), level)
            at = []
            for strength in strengths:
                own = [strength * (who in ("all", d)) for d in folders]
                errors = pair_errors(model, batch, sigma, noise, lambda s, own=own: constant_gate(
                    len(s), model.num_layers, own))  # type: ignore[misc]  # fmt: skip
                at.append(errors)
            gaps = [(e[0] - at[0][0], e[1] - at[0][1]) for e in at]
            z = [-0.5 * config.dpo.beta * (c - r).mean(1) for c, r in gaps]
            losses.append([float(-nn.functional.logsigmoid(value).mean()) for value in z])
        best = [strengths[min(range(len(row)), key=row.__getitem__)] for row in losses]
        report[who] = {"loss": losses, "best_strength": best}
    return report


def main() -> None:
    """Run the study and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", type=Path, help="a seed's folder of a comparison")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--pairs", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = {"machine": header(), "toy": toy(given.steps, given.seeds)}
    if given.table is not None:
        report["nano"] = nano(given.table, given.dataset, given.cache, given.pairs)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
