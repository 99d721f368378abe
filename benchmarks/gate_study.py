"""When does a gate over timestep and layer pay? Tables of a problem with a known answer.

    python benchmarks/gate_study.py [--seeds 5]

The problem is `gate_toy`'s: experts with known faults on Gaussian latents, gates trained by
Flow-DPO from a merge at one half, judged on fresh pairs; figures are ln 2 - loss, mean and standard
deviation over training seeds. Kinds of experts; more layers; harder pairs (a smaller shift, labels
that are wrong); few pairs, with fewer or more gate inputs and weight decay; forms of the gate.
`gate_nano` asks the same of nano's experts.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gate_toy import Problem, gains
from machine import header

RESULTS = Path(__file__).parent / "results" / "gate_study.json"
KINDS = ("aware", "blind", "windows", "layers")
GATES = {
    "static merge": {"timestep": False, "per_layer": False},
    "without timestep": {"timestep": False, "per_layer": True},
    "without layer": {"timestep": True, "per_layer": False},
    "gate": {"timestep": True, "per_layer": True},
}
INPUTS = {
    "static merge": {"timestep": False, "per_layer": False},
    "gate, 2 inputs": {"waves": 2},
    "gate": {},
    "gate, 65 inputs": {"waves": 65},
    "gate, weight decay 1": {"decay": 1.0},
    "gate, weight decay 10": {"decay": 10.0},
}


def cells(
    problems: Iterable[tuple[str, Problem]], methods: dict[str, Any], seeds: int
) -> dict[str, Any]:
    """Return, for each problem and method, the gain ``ln 2 - loss`` over the start."""
    report: dict[str, Any] = {}
    for name, problem in problems:
        found = {
            method: gains(seeds, lambda s, p=problem, c=changes: replace(p, **c, seed=s))  # type: ignore[misc]
            for method, changes in methods.items()
        }
        print(name, {m: round(f["mean"], 4) for m, f in found.items()}, flush=True)
        report[name] = found
    return report


def toy(seeds: int) -> dict[str, Any]:
    """Return all of the toy's tables."""
    pick = {name: GATES[name] for name in ("static merge", "gate")}
    forms = {form: {"form": form} for form in ("figure", "softmax", "sigmoid")}
    return {
        "kinds of experts": cells(((k, Problem(k)) for k in KINDS), GATES, seeds),
        "more layers": cells(
            (
                (f"{kind}, {n} layers", Problem(kind, layers=n))
                for kind in ("layers", "mixed")
                for n in (2, 4, 8)
            ),
            GATES,
            seeds,
        ),
        "harder pairs": cells(
            (
                (f"{kind}, shift {shift}, {flipped:.0%} wrong", Problem(
                    kind, shift=shift, flipped=flipped))
                for kind in ("aware", "windows")
                for shift, flipped in ((0.5, 0.0), (0.25, 0.0), (0.1, 0.0), (0.5, 0.2), (0.5, 0.4))
            ),
            pick,
            seeds,
        ),
        "few pairs": cells(
            (
                (f"{kind}, {n} pairs, 20% wrong", Problem(kind, flipped=0.2, count=n))
                for kind in ("aware", "windows")
                for n in (16, 64, 256, 1024)
            ),
            INPUTS,
            seeds,
        ),
        "forms": cells(((k, Problem(k)) for k in KINDS), forms, seeds),
    }  # fmt: skip


def main() -> None:
    """Run the study and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = {"machine": header(), "setting": {"seeds": given.seeds}, **toy(given.seeds)}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
