"""Are the critic's pairs right, and would clearer, cleaner or true pairs make better experts?

At nano the truth of every clip is known (`ft2.puppet.judges`), so the labels of a demo's dataset
can be checked: the share of pairs whose chosen side is truly better, by how far apart P(yes) is.
Then experts are trained on choices of these pairs with equal steps, several seeds, and sampled on
validation conditions (no test condition is touched):

    built         the dataset's own pairs (P(yes) on both sides of 0.5, four a condition)
    half          a random half of them
    clearest half the half with the widest gap in P(yes)
    widest        from all clips, the four widest gaps of every condition, whatever the answers
                  (`ft2 nsq build` with by=margin, min_margin=0.01 and prefer=margin in `pairing`)
    no conflict   those of `built` that lose on no other dimension
    sft           `built` with an SFT term
    truth         `built` with the sides as the truth has them: an upper bound
    true widest   from all clips, the four pairs of every condition that truly differ most

    ft2 demo -o runs/demo; ft2 puppet build --split dev --conditions 48 -o runs/dev
    python benchmarks/label_study.py runs/demo --validation runs/dev/conditions.jsonl --work DIR

What is in DIR already is kept, so that a stopped call goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_pairs import Data, agreement, choose, judged, load, write_dataset
from machine import header

from ft2.config import load_config
from ft2.generator.config import GenerateConfig
from ft2.generator.sample import Sampler
from ft2.metrics import bootstrap_paired
from ft2.pairs import DIMENSIONS, Condition, read_conditions
from ft2.runs import read_json, write_json
from ft2.tlpo.config import ExpertConfig
from ft2.tlpo.policy import load_policy
from ft2.tlpo.train import train_expert
from ft2.wan.model import TalkingModel
from ft2.wan.weights import load_talking_model

RESULT = Path(__file__).parent / "results" / "label_study.json"
SFT = 20.0
"""Weight of the SFT term: that of a chosen error of 0.035 is then about that of the loss."""
ENGINE = ["engine.kind=torch", "engine.zero_stage=0", "loop.eval_pairs=32"]


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", nargs="*", default=[], metavar="DIMENSION:VARIANT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_talking_model(load_config(GenerateConfig, "nano/generate").model, "cpu")
    data = load(options.demo, options.work, model)
    report: dict[str, Any] = {"machine": {**header(), "command": _command(options)}}
    report["pairs_agree_with_truth"] = {d: agreement(data, d) for d in DIMENSIONS}
    print(json.dumps(report["pairs_agree_with_truth"], indent=1), flush=True)
    conditions = read_conditions(options.validation)
    report["setting"] = {"seeds": options.seeds, "conditions": len(conditions), "sft": SFT}
    base = scored(options.work / "base.json", conditions, model, None)
    report["experts"] = {}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    for name in options.runs:
        dimension, variant = name.split(":")
        found = [
            one_expert(data, dimension, variant, seed, options.work, model, conditions)
            for seed in range(options.seeds)
        ]
        report["experts"][name] = summary(found, base, conditions)
        print(name, json.dumps(report["experts"][name]), flush=True)
        RESULT.write_text(json.dumps(report, indent=1) + "\n")


def _command(options: argparse.Namespace) -> str:
    return (
        "python benchmarks/label_study.py runs/demo --validation runs/dev/conditions.jsonl "
        f"--work DIR --seeds {options.seeds} --runs {' '.join(map(shlex.quote, options.runs))}"
    )


def one_expert(
    data: Data,
    dimension: str,
    variant: str,
    seed: int,
    work: Path,
    model: TalkingModel,
    conditions: Sequence[Condition],
) -> dict[str, Any]:
    """Train one expert and judge its clips, unless that is done."""
    name = f"{dimension}-{variant.replace(' ', '-')}-{seed}"
    folder, run = work / name / "nsq", work / name / "run"
    if not folder.exists():
        write_dataset(folder, data, dimension, choose(data, dimension, variant, seed))
    own = [f"dpo.sft={SFT}"] if variant == "sft" else []
    places = [f"dataset={folder}", f"cache={work / 'cache'}", f"loop.seed={seed}"]
    config = load_config(ExpertConfig, f"nano/expert-{dimension}", [*ENGINE, *places, *own])
    result = train_expert(config, run, resume=True, model=model)
    rows = scored(work / name / "rows.json", conditions, model, run)
    held_out: Any = result["held_out"]
    about = {"pairs": result["pairs"], "steps": result["steps"]}
    return {**about, "held_out_accuracy": held_out["implicit_accuracy"], "rows": rows}


def scored(
    record: Path, conditions: Sequence[Condition], model: TalkingModel, run: Path | None
) -> list[dict[str, float]]:
    """Return the true scores of one clip for each condition; kept in a file."""
    if record.is_file():
        kept: list[dict[str, float]] = read_json(record)
        return kept
    policy = None if run is None else load_policy(run, model)
    settings = load_config(GenerateConfig, "nano/generate", ["guidance.audio=1.0"])
    made = Sampler(model, settings, policy, "x").generate(conditions, (0,), record.parent / "clips")
    videos = {clip.condition_id: clip.video for clip in made}
    rows = [judged(videos[c.condition_id], c, model) for c in conditions]
    write_json(record, rows)
    return rows


def summary(
    found: Sequence[dict[str, Any]],
    base: Sequence[dict[str, float]],
    conditions: Sequence[Condition],
) -> dict[str, Any]:
    """Return mean differences to the base over seeds, with 95 % over utterances."""
    voices = [c.audio_id.split("@")[0] for c in conditions]
    table: dict[str, Any] = {
        "pairs": found[0]["pairs"],
        "steps": [run["steps"] for run in found],
        "held_out_accuracy": [round(run["held_out_accuracy"], 3) for run in found],
    }
    for d in DIMENSIONS:
        mean = np.mean([[row[d] for row in run["rows"]] for run in found], axis=0)
        gap = bootstrap_paired(mean, [row[d] for row in base], voices).to_dict()
        table[d] = [round(float(gap[k]), 4) for k in ("value", "low", "high")]
        table[f"{d} by seed"] = [
            round(float(np.mean([r[d] - b[d] for r, b in zip(run["rows"], base, strict=True)])), 4)
            for run in found
        ]
    return table


if __name__ == "__main__":
    main()
