"""What the fused experts, the decomposed backward and the stored reference cost: ratios in one run.

    python benchmarks/tlpo.py [--dim 1280] [--tokens 5376] [--rank 32] [--rounds 5]

Each ratio compares ways of doing the same work in this process, taken in turn; the time is the
least of the rounds (CPU seconds of this process). The linear keeps the proportions of a 5120 x 5120
one with rank 128 and 21,504 tokens, divided by four. What 16 bits lose of the experts is measured
at width 5120, for experts that change the weight by so much of its own size.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import header
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "tlpo.json"


def best(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least CPU seconds of each call; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: min(values[1:]) for name, values in times.items()}


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

        seconds = best(
            {
                "frozen": lambda: backward(base(x)),
                "fused": fused,
                "beside": lambda: fused(False),
                "peft": lambda: backward(theirs(x)),
            },
            rounds,
        )
        over = {name: value - seconds["frozen"] for name, value in seconds.items()}
        report[stage] = {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "overhead_of_frozen": {
                n: round(over[n] / seconds["frozen"], 3) for n in ("fused", "beside", "peft")
            },
            "overhead_of_peft": {n: round(over[n] / over["peft"], 3) for n in ("fused", "beside")},
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


def nano_step(size: int = 8, **settings: Any) -> tuple[Callable[..., Any], Any]:
    """Return (step on size pairs, known reference errors) on the nano generator with an expert."""
    from ft2.config import load_config
    from ft2.lora import install_experts
    from ft2.tlpo.config import DpoConfig, ExpertConfig
    from ft2.tlpo.data import Batch
    from ft2.tlpo.gate import constant_gate
    from ft2.tlpo.passes import base_gate
    from ft2.tlpo.step import PreferenceStep
    from ft2.wan.condition import Conditioning
    from ft2.wan.spec import WanSpec
    from ft2.wan.weights import load_talking_model

    model = load_talking_model(WanSpec(weights="nano"), torch.device("cpu"))
    lora = load_config(ExpertConfig, "nano/expert-lip").lora
    model.dit.requires_grad_(False).eval()
    torch.manual_seed(0)
    install_experts(model.dit, lora.targets, 1, lora.rank, lora.alpha)
    trainable = {n: p for n, p in model.dit.named_parameters() if p.requires_grad}
    shape = model.latent_shape()
    clip, spec = model.clip, model.architecture
    import numpy as np

    portrait = np.full((1, clip.height, clip.width, 3), 128, np.uint8)
    sound = np.random.default_rng(0).standard_normal(clip.num_samples).astype(np.float32)
    cond = model.encode_conditions(portrait, [0.1 * sound], ["a person speaks"]).repeat(size)
    batch = Batch(torch.randn(size, *shape), torch.randn(size, *shape), cond, None)
    sigma, noise = torch.rand(size, 1), torch.randn(size, 1, *shape)
    step = PreferenceStep(
        model,
        lambda s: constant_gate(len(s), spec.dit.num_layers, [1.0]),
        base_gate,
        trainable,
        DpoConfig(beta=500, **settings),
    )
    assert isinstance(cond, Conditioning)
    known = step.reference_errors(batch, sigma, noise)

    def run(reference: Any = None) -> None:
        step(batch, sigma, noise, reference)[0].backward()

    return run, known


def stored_reference(rounds: int) -> dict[str, Any]:
    """Compare a step that computes the reference with one that knows its errors."""
    run, known = nano_step()
    seconds = best({"plain": run, "stored": lambda: run(known)}, rounds)
    return {"seconds": seconds, "steps_per_second": seconds["plain"] / seconds["stored"]}


def decomposed(rounds: int, size: int) -> dict[str, Any]:
    """Compare plain and decomposed backward: time, FLOPs and peak memory of tensors.

    Half the rows twice as often: with few pairs the fixed cost of calls weighs more than at real
    size, where one pair has 2 x 21,504 tokens (24 nano pairs have 4,608).
    """
    plain, _ = nano_step(size)
    split, _ = nano_step(size, decomposed=True)
    steps = {"plain": plain, "decomposed": split}
    report: dict[str, Any] = {
        "seconds": best(steps, rounds),
        "gflop": {name: counted_flops(step) / 1e9 for name, step in steps.items()},
        "peak_mb": {name: peak_mb(step) for name, step in steps.items()},
    }
    for name, key in (("time", "seconds"), ("flops", "gflop"), ("memory", "peak_mb")):
        report[name] = report[key]["decomposed"] / report[key]["plain"]
    return report


def counted_flops(call: Callable[[], object]) -> float:
    """Return the FLOPs that torch counts in a call."""
    from torch.utils.flop_counter import FlopCounterMode

    def product(_out: object, a: list[int], b: list[int], **_: object) -> int:
        return 2 * a[0] * a[1] * b[1]

    in_place = {torch.ops.aten.addmm_: product}  # torch's counter leaves it out
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        call()
    return float(counter.get_total_flops())


def peak_mb(call: Callable[[], object]) -> float:
    """Return the most megabytes of tensors that a call held at a time, by the profiler's count."""
    from torch.profiler import ProfilerActivity, profile

    call()  # gradients exist from here on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 1e6


def plan_against_measured() -> dict[str, Any]:
    """Compare the plan's FLOPs of a nano pair with those that torch counts in a real step."""
    from ft2.config import load_config
    from ft2.tlpo.config import ExpertConfig
    from ft2.tlpo.plan import plan_stage

    run, _ = nano_step()
    counted = counted_flops(run) / 8 / 1e12
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"dataset={folder}/none"]
        plan: Any = plan_stage(load_config(ExpertConfig, "nano/expert-lip", overrides))
    planned = plan["tflop_per_pair"]
    return {"counted_tflop": counted, "planned_tflop": planned, "ratio": planned / counted}


def main() -> None:
    """Run all comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--tokens", type=int, default=5376)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    linear = {
        str(dtype).removeprefix("torch."): fused_linear(
            given.dim, given.tokens, given.rank, given.rounds, dtype
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    report = {
        "machine": {**header(), "threads": 1, "torch": torch.__version__},
        "setting": vars(given),
        "three_experts_on_one_linear": linear,
        "flop_floor_at_real_size": flop_floors(5120, 21_504),
        "bfloat16_at_width_5120": sixteen_bits(),
        "stored_reference": stored_reference(given.rounds),
        "decomposed": {f"{size} pairs": decomposed(given.rounds, size) for size in (8, 24)},
        "plan": plan_against_measured(),
        "peak_mb_of_this_run": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
