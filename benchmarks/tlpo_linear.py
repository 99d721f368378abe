"""What experts on one frozen linear cost and lose: ours against PEFT's three-adapter loop.

    python benchmarks/tlpo_linear.py [--widths 256 512 1280 5120] [--dtypes float32 bfloat16]
                                     [--tokens 21504] [--rounds 3] [--linear-only]

Forward and backward of a linear as wide as it is high, on the tokens of a clip of 512 x 512 x 81,
with three experts of rank width / 40 (128 at 5120), a gate or the experts trained; ratios of the
least CPU seconds in one process, calls taken in turn. The wider the linear, the more its own
multiplications weigh against the traffic of temporary tensors: `balance` holds this machine's
multiplications for each number that it can move, beside an H200's by its data sheet (989 TFLOP/s in
bfloat16, 4.8 TB/s), and the width at which this machine's linear stands as one of 5120 does there.
`merged` has each sample's experts merged into the weight, `beside` none; `fused` is what ft2 takes.
With ``--linear-only`` only the widths and dtypes given are measured; the rest of the file stays.
What 16 bits lose of experts that change the weight by so much of its own size, and of the gate's
gradient, is measured at width 5120 against float64.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import header, least_seconds
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "tlpo_linear.json"


def backward(out: Tensor) -> None:
    """Run a backward pass with a fixed gradient."""
    out.backward(torch.ones_like(out))


@contextmanager
def form(merge: bool | None) -> Iterator[None]:
    """Choose the form of the products: merged or beside, or by the shapes (None)."""
    if merge is None:
        yield
        return
    with mock.patch("ft2.lora.fused.merging_pays", return_value=merge):
        yield


def fused_linear(dim: int, tokens: int, rank: int, rounds: int, dtype: torch.dtype) -> Any:
    """Compare three experts on one frozen linear: fused, and PEFT's loop over adapters."""
    import peft

    from ft2.lora import FusedLinear

    torch.manual_seed(0)
    base = nn.Linear(dim, dim).to(dtype).requires_grad_(False)
    layer = FusedLinear(base, 3, rank, float(rank)).to(dtype)
    nn.init.normal_(layer.lora_B, std=0.01)
    holder = nn.Sequential(nn.Linear(dim, dim).to(dtype).requires_grad_(False))
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
    theirs = peft.get_peft_model(holder, config, adapter_name="0", autocast_adapter_dtype=False)
    for name in ("1", "2"):
        theirs.add_adapter(name, config, autocast_adapter_dtype=False)
    theirs.base_model.set_adapter(["0", "1", "2"])
    x = torch.randn(1, tokens, dim).to(dtype).requires_grad_()
    report: dict[str, Any] = {}
    for stage in ("gate", "expert"):
        for name, p in [*layer.named_parameters(), *theirs.named_parameters()]:
            if "lora_" in name:
                p.requires_grad_(stage == "expert")
        gate = torch.ones(1, 3, requires_grad=stage == "gate")

        def fused(merge: bool | None = None, gate: Tensor = gate) -> None:
            with form(merge):
                backward(layer(x, gate))

        seconds = least_seconds(
            {
                "frozen": lambda: backward(base(x)),
                "fused": fused,
                "beside": lambda: fused(False),
                "merged": lambda: fused(True),
                "peft": lambda: backward(theirs(x)),
            },
            rounds,
        )
        over = {name: value - seconds["frozen"] for name, value in seconds.items()}
        report[stage] = {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "overhead_of_frozen": {
                n: round(over[n] / seconds["frozen"], 3) for n in over if n != "frozen"
            },
            "overhead_of_peft": {
                n: round(over[n] / over["peft"], 3) for n in ("fused", "beside", "merged")
            },
            "saved_mb": {
                "fused": saved(lambda gate=gate: layer(x, gate), layer),  # type: ignore[misc]
                "peft": saved(lambda: theirs(x), theirs),
            },
        }
    return report


def flop_floors(dim: int, tokens: int) -> dict[str, Any]:
    """Return the work that experts add to a frozen square linear, as shares of PEFT's loop.

    In units of one projection to or from rank space (``2 tokens dim ranks``), the loop needs two
    forward, two for dx, two more for dA and dB if experts are trained. Beside the base we need the
    same. Merged into the weight, forward and backward (``2 ranks dim^2`` each), experts cost y and
    dx nothing, but a gate's gradient needs x A^T and dy B, and an expert's dA and dB as well.
    """
    merging = 2 * dim / tokens
    return {
        "dim": dim,
        "tokens": tokens,
        "beside_of_peft": {"expert": 6 / 6, "gate": 4 / 4},
        "merged_of_peft": {"expert": (4 + merging) / 6, "gate": (2 + merging) / 4},
    }


def sixteen_bits(dim: int = 5120, tokens: int = 64, ranks: int = 384) -> dict[str, Any]:
    """Compare forms in bfloat16 with float64, for experts of several sizes beside the weight's.

    ``kept`` is the projection of what experts add to the output (policy minus base, both rounded)
    on what they should, ``error`` that of the output. ``base first`` adds experts to a base that
    is rounded already, as PEFT's loop does; ``beside`` is what is shipped.
    """
    from ft2.lora import FusedLinear
    from ft2.lora.merge import merged_weight

    torch.manual_seed(0)
    layer = FusedLinear(nn.Linear(dim, dim, bias=False), 3, ranks // 3, ranks / 3)
    layer.weight.data = (0.03 * torch.randn(dim, dim)).bfloat16()
    nn.init.normal_(layer.lora_B)
    layer.requires_grad_(False)
    x, gate = torch.randn(1, tokens, dim).bfloat16(), torch.ones(1, 3)
    down, base = layer.lora_A.bfloat16(), layer(x)
    exact_base, size = base_in_64(layer, x), (layer.lora_B @ layer.lora_A).std() / 0.03
    report: dict[str, Any] = {}
    for change in (1e-3, 3e-3, 1e-2, 3e-2):
        layer.lora_B.mul_(change / size)
        size = torch.tensor(change)
        up = layer.lora_B.bfloat16()
        part = x.double() @ layer.lora_A.double().t() @ layer.lora_B.double().t()
        whole = merged_weight(layer.weight, torch.ones(ranks), down, up)
        outputs = {
            "beside": layer(x, gate),
            "merged": x @ whole.t(),
            "base first": (base.double() + (x @ down.t() @ up.t()).double()).bfloat16(),
        }
        exact = exact_base + part
        report[f"weight changed by {100 * change:g} %"] = {
            name: {
                "kept": round(
                    float(((y.double() - base.double()) * part).sum() / (part**2).sum()), 3
                ),
                "error": round(float((y.double() - exact).norm() / exact.norm()), 5),
            }
            for name, y in outputs.items()
        }
    return report


def base_in_64(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return the product with the base alone in float64."""
    return x.double() @ layer.weight.double().t()


def saved(call: Callable[[], object], module: nn.Module) -> float:
    """Return the megabytes that a forward pass keeps beside the module's weights."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        place = t.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return round(sum(kept.values()) / 1e6, 2)


def gate_gradient(dim: int = 5120, tokens: int = 512, samples: int = 8) -> dict[str, float]:
    """Compare the gradient of a gate over three experts in bfloat16 with float64.

    For random inputs and random gradients of the outputs, where what cancels leaves least. Both
    take the same bfloat16 numbers; ``error`` is the norm of the difference over the norm.
    """
    from ft2.lora import FusedLinear

    torch.manual_seed(0)
    layer = FusedLinear(nn.Linear(dim, dim, bias=False).bfloat16(), 3, dim // 40, dim / 40)
    nn.init.normal_(layer.lora_B, std=0.01)
    layer.requires_grad_(False)
    for part in (layer.lora_A, layer.lora_B):
        part.copy_(part.bfloat16())
    gate = torch.full((samples, 3), 1 / 3, requires_grad=True)
    x, dy = (torch.randn(samples, tokens, dim).bfloat16() for _ in range(2))
    layer(x, gate).backward(dy)
    hidden = x.double() @ layer.lora_A.double().t()
    exact = (hidden * (dy.double() @ layer.lora_B.double())).sum(1).unflatten(1, (3, -1)).sum(2)
    assert gate.grad is not None
    error = (gate.grad.double() - exact).norm() / exact.norm()
    return {"error": round(float(error), 6), "bfloat16_step": 2.0**-8}


def balance(dtype: torch.dtype, size: int = 2048) -> dict[str, Any]:
    """Return multiplications and additions for each number moved, here and on an H200."""
    a, many = torch.randn(size, size).to(dtype), torch.randn(1 << 26).to(dtype)
    other = torch.empty_like(many)
    seconds = least_seconds({"product": lambda: a @ a, "copy": lambda: other.copy_(many)}, 5)
    here = 2 * size**3 / seconds["product"] / (2 * many.numel() / seconds["copy"])
    there = 989e12 / (4.8e12 / 2)
    width = round(5120 * here / there)
    return {"flop_per_number": round(here, 1), "H200": round(there), "width_like_5120": width}


def main() -> None:
    """Run all comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1280, 5120])
    parser.add_argument("--tokens", type=int, default=21_504)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--linear-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "machine": {**header(), "threads": 1, "torch": torch.__version__},
        "setting": {"widths": given.widths, "tokens": given.tokens, "rounds": given.rounds},
    }
    if given.linear_only:
        report = json.loads(RESULTS.read_text())
    for name in given.dtypes:
        dtype = getattr(torch, name)
        own = report.setdefault(name, {})
        own["balance"] = balance(dtype)
        for width in given.widths:
            rank = round(width / 40)
            found = fused_linear(width, given.tokens, rank, given.rounds, dtype)
            own[f"width {width}, rank {rank}"] = found
            print(name, width, {s: f["overhead_of_peft"] for s, f in found.items()}, flush=True)
    if not given.linear_only:
        report["flop_floor_at_real_size"] = flop_floors(5120, 21_504)
        report["bfloat16_at_width_5120"] = sixteen_bits()
        report["gate_gradient_in_bfloat16_at_width_5120"] = gate_gradient()
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
