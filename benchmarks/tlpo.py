"""What the fused experts, the decomposed backward and the stored reference cost: ratios in one run.

    python benchmarks/tlpo.py [--tokens 256] [--dim 5120] [--rounds 5]

Each ratio compares two ways of doing the same work in this process, taken in turn; the time is the
least of the rounds (CPU seconds of this process). Token counts are scaled to the machine: at few
tokens the fixed cost of a weight weighs more than at the 21,504 tokens of a real clip.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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


def fused_linear(dim: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Compare K=3, r=128 experts on one frozen linear: fused, and PEFT's loop over adapters."""
    import peft

    from ft2.lora import FusedLinear

    torch.manual_seed(0)
    base = nn.Linear(dim, dim).requires_grad_(False)
    layer = FusedLinear(base, 3, 128, 128.0)
    nn.init.normal_(layer.lora_B, std=0.01)
    holder = nn.Sequential(nn.Linear(dim, dim).requires_grad_(False))
    config = peft.LoraConfig(r=128, lora_alpha=128, target_modules=["0"])
    theirs = peft.get_peft_model(holder, config, adapter_name="0")
    for name in ("1", "2"):
        theirs.add_adapter(name, config)
    theirs.base_model.set_adapter(["0", "1", "2"])
    x = torch.randn(1, tokens, dim, requires_grad=True)
    report: dict[str, Any] = {"dim": dim, "tokens": tokens, "rank": 128, "experts": 3}
    for stage in ("expert", "gate"):
        for module in (layer, theirs):
            for name, p in module.named_parameters():
                if "lora_" in name:
                    p.requires_grad_(stage == "expert")
        gate = torch.ones(1, 3, requires_grad=stage == "gate")
        seconds = best(
            {
                "frozen": lambda: backward(base(x)),
                "fused": lambda gate=gate: backward(layer(x, gate)),  # type: ignore[misc]
                "peft": lambda: backward(theirs(x)),
            },
            rounds,
        )
        over = {name: seconds[name] - seconds["frozen"] for name in ("fused", "peft")}
        report[stage] = {
            "seconds": seconds,
            "overhead_of_frozen": {n: v / seconds["frozen"] for n, v in over.items()},
            "fused_overhead_of_peft": over["fused"] / over["peft"],
            "saved_mb": {
                "fused": saved(lambda gate=gate: layer(x, gate), layer),  # type: ignore[misc]
                "peft": saved(lambda: theirs(x), theirs),
            },
        }
    return report


def flop_floors(dim: int, tokens: int) -> dict[str, Any]:
    """Return the work that experts add to a frozen square linear, as shares of PEFT's loop.

    In units of one projection to or from rank space (``2 tokens dim ranks``), the loop needs two
    forward, two for dx, two more for dA and dB if experts are trained. Fused needs the same. With
    the experts merged into the weight (``2 ranks dim^2`` a sample) neither the forward pass nor dx
    costs anything a token, but a gate's gradient still needs x A^T and dy B, and an expert's dA and
    dB as well.
    """
    merging = dim / tokens
    return {
        "dim": dim,
        "tokens": tokens,
        "fused_of_peft": {"expert": 6 / 6, "gate": 4 / 4},
        "merged_of_peft": {"expert": (4 + merging) / 6, "gate": (2 + merging) / 4},
    }


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


def nano_step(**settings: Any) -> tuple[Callable[..., Any], Any]:
    """Return (step on a batch, known reference errors) on the nano generator with an expert."""
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
    size, shape = 8, model.latent_shape()
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


def decomposed(rounds: int) -> dict[str, Any]:
    """Compare plain and decomposed backward: time, FLOPs and peak memory of tensors."""
    plain, _ = nano_step()
    split, _ = nano_step(decomposed=True)
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
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dim", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": 1,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "fused_linear": fused_linear(given.dim, given.tokens, given.rounds),
        "flop_floor_at_real_size": flop_floors(5120, 21_504),
        "stored_reference": stored_reference(given.rounds),
        "decomposed": decomposed(given.rounds),
        "plan": plan_against_measured(),
        "peak_mb_of_this_run": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
