"""What the decomposed backward and the stored reference save at nano, and if the plan is right.

    python benchmarks/tlpo.py [--rounds 5]

Each ratio compares ways of doing the same work in this process, taken in turn; the time is the
least of the rounds (CPU seconds of this process). The plan's FLOPs and activations are compared
with what torch counts in a step of nano pairs.
"""

import argparse
import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import header, least_seconds, peak_mb

RESULTS = Path(__file__).parent / "results" / "tlpo.json"


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
    seconds = least_seconds({"plain": run, "stored": lambda: run(known)}, rounds)
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
        "seconds": least_seconds(steps, rounds),
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


def plan_against_measured(size: int = 24) -> dict[str, Any]:
    """Compare the plan's FLOPs of a nano pair and what a step holds with those of a real one."""
    from ft2.config import load_config
    from ft2.tlpo.config import ExpertConfig
    from ft2.tlpo.plan import plan_stage

    run, _ = nano_step(size)
    counted, held = counted_flops(run) / size / 1e12, peak_mb(run)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"dataset={folder}/none", f"engine.micro_batch_size={size}", "sigma.draws=1"]
        plan: Any = plan_stage(load_config(ExpertConfig, "nano/expert-lip", overrides))
    planned = plan["tflop_per_pair"]
    parts = ("activations", "workspace", "cast", "passing", "waiting")
    activations = sum(plan["memory_gib"][part] for part in parts) * 2**30 / 1e6
    return {
        "counted_tflop": counted,
        "planned_tflop": planned,
        "ratio": planned / counted,
        "peak_mb": held,
        "planned_mb": activations,
        "memory_ratio": activations / held,
    }


def main() -> None:
    """Run all comparisons and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "machine": {**header(), "threads": 1, "torch": torch.__version__},
        "setting": vars(given),
        "stored_reference": stored_reference(given.rounds),
        "decomposed": {f"{size} pairs": decomposed(given.rounds, size) for size in (8, 24)},
        "plan": plan_against_measured(),
        "peak_mb_of_this_run": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
