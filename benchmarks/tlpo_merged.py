"""Would merging the experts into each sample's weight be faster to train than the fused linear?

One frozen linear with three experts, forward and backward, taken in turn in one process: the base
alone, ft2's fused linear, the experts merged per sample (`W + B diag(gs) A` in the forward pass and
again for dx; a gate still needs x A^T and dy B for every token), and PEFT's loop over adapters.
Sizes keep the proportions of a 5120 x 5120 linear with rank 128 and 21,504 tokens, divided by
four. The merged form is held against the fused one in float64 first.

    python benchmarks/tlpo_merged.py [--dim 1280] [--tokens 5376] [--rank 32] [--rounds 3]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import header
from tlpo import backward, best, flop_floors
from torch import Tensor, nn

from ft2.lora import FusedLinear

RESULT = Path(__file__).parent / "results" / "tlpo_merged.json"


class Merged(torch.autograd.Function):
    """``y_i = x_i (W + B diag(gs_i) A)^T + b`` for each sample i."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, *parts: Tensor) -> Tensor:
        weight, bias, down, up = parts
        rows = zip(x, scale, strict=True)
        out = [F.linear(row, torch.addmm(weight, up * own, down), bias) for row, own in rows]
        ctx.save_for_backward(x, scale, weight, down, up)
        return torch.stack(out) if len(out) > 1 else out[0][None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight, down, up = ctx.saved_tensors
        needs = ctx.needs_input_grad
        rows = zip(grad, scale, strict=True)
        dx = [row @ torch.addmm(weight, up * own, down) for row, own in rows]
        d_gated, hidden = grad @ up, x @ down.t()
        d_scale = (d_gated * hidden).sum(1) if needs[1] else None
        d_down = d_up = None
        if needs[4]:
            d_down = (d_gated * scale[:, None]).flatten(0, 1).t() @ x.flatten(0, 1)
            d_up = grad.flatten(0, 1).t() @ (hidden * scale[:, None]).flatten(0, 1)
        whole = torch.stack(dx) if len(dx) > 1 else dx[0][None]
        return whole, d_scale, None, None, d_down, d_up


def merged(layer: FusedLinear, x: Tensor, gate: Tensor) -> Tensor:
    """Call a fused linear with its experts merged for each sample."""
    scale = layer.rank_scale(gate, len(x))
    out: Tensor = Merged.apply(x, scale, layer.weight, layer.bias, layer.lora_A, layer.lora_B)  # type: ignore[no-untyped-call]
    return out


def exactness() -> float:
    """Return the largest difference of output and gradients to the fused linear, in float64."""
    torch.manual_seed(0)
    layer = FusedLinear(nn.Linear(24, 36).double().requires_grad_(False), 3, 4, 8.0)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 7, 24, dtype=torch.double, requires_grad=True)
    gate = torch.rand(2, 3, dtype=torch.double, requires_grad=True)
    wanted = [x, gate, layer.lora_A, layer.lora_B]
    found = []
    for out in (layer(x, gate), merged(layer, x, gate)):
        weighed = out * torch.arange(out.numel()).view_as(out)
        found.append([out, *torch.autograd.grad(weighed.sum(), wanted)])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))


def measure(dim: int, tokens: int, rank: int, rounds: int) -> dict[str, Any]:
    """Return seconds and overheads of the four, experts trained and gate trained."""
    import peft

    base = nn.Linear(dim, dim).requires_grad_(False)
    layer = FusedLinear(base, 3, rank, float(rank))
    nn.init.normal_(layer.lora_B, std=0.01)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
    holder = nn.Sequential(nn.Linear(dim, dim).requires_grad_(False))
    theirs = peft.get_peft_model(holder, config, adapter_name="0")
    for name in ("1", "2"):
        theirs.add_adapter(name, config)
    theirs.base_model.set_adapter(["0", "1", "2"])
    x = torch.randn(1, tokens, dim, requires_grad=True)
    report: dict[str, Any] = {}
    for stage in ("expert", "gate"):
        for name, p in [*layer.named_parameters(), *theirs.named_parameters()]:
            if "lora_" in name:
                p.requires_grad_(stage == "expert")
        gate = torch.ones(1, 3, requires_grad=stage == "gate")
        seconds = best(
            {
                "frozen": lambda: backward(base(x)),
                "fused": lambda gate=gate: backward(layer(x, gate)),  # type: ignore[misc]
                "merged": lambda gate=gate: backward(merged(layer, x, gate)),  # type: ignore[misc]
                "peft": lambda: backward(theirs(x)),
            },
            rounds,
        )
        over = {name: value - seconds["frozen"] for name, value in seconds.items()}
        report[stage] = {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "overhead_of_peft": {n: round(over[n] / over["peft"], 3) for n in ("fused", "merged")},
            "merged_step_of_fused": round(seconds["merged"] / seconds["fused"], 3),
        }
    return report


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--tokens", type=int, default=5376)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "machine": {**header(), "command": "python benchmarks/tlpo_merged.py"},
        "setting": vars(given),
        "float64_difference": exactness(),
        **measure(given.dim, given.tokens, given.rank, given.rounds),
        "flop_floor_at_real_size": flop_floors(5120, 21_504),
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
