"""Keep what a run of the demo found, with its gate, as a result that the pages are drawn from.

uv run ft2 demo
python benchmarks/demo.py runs/demo --where "a fresh clone, idle cores"
    --out benchmarks/results/demo.json --strip docs/demo-strip.jpg
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import cpu

from ft2.config import load_config
from ft2.flow import shifted_sigmas
from ft2.generator.config import GenerateConfig
from ft2.media import read_video
from ft2.runs import read_json
from ft2.tlpo.policy import load_policy
from ft2.wan.weights import load_talking_model

EXPERT_FACTS = ("parameters", "pairs", "steps", "seconds", "held_out")


def main() -> None:
    """Read the run and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--where", required=True, help="what else the machine did")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strip", type=Path, help="frames of the first samples, a picture")
    args = parser.parse_args()
    found = read_json(args.run / "result.json")
    config = load_config(GenerateConfig, "nano/generate")
    record = {
        **_header(read_json(args.run / "command.json"), args.where),
        "seconds": found["seconds"],
        "peak_mb": found["peak_mb"],
        "critic accuracy": {k: _known(row) for k, row in found["critic"].items()},
        "pairs": found["pairs"],
        "experts": {
            name: {**{k: expert[k] for k in EXPERT_FACTS}, "alarms": _alarms(expert)}
            for name, expert in found["experts"].items()
        },
        "fusion": _fusion(read_json(args.run / "fusion" / "result.json")),
        "scores": found["scores"],
        "difference_to_base": found["difference_to_base"],
        "stages": {k: _without(row, "found") for k, row in found["stages"].items()},
        "gate": _gate(args.run / "fusion", config),
    }
    args.out.write_text(json.dumps(_rounded(record), indent=1) + "\n", encoding="utf-8")
    if args.strip:
        _draw_strip(args.run / "clips", args.strip)


def _header(command: dict[str, Any], where: str) -> dict[str, Any]:
    machine = {"cpu": cpu(), "cores": os.cpu_count(), "python": command["python"]}
    machine |= {"torch": command["packages"]["torch"], "git": command["git"]}
    return {
        "command": "uv run ft2 demo",
        "date": command["time"][:10],
        "machine": machine,
        "setting": {"seed": 0, "where": where},
    }


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def _alarms(result: dict[str, Any]) -> str:
    return ", ".join(alarm["name"] for alarm in result["alarms"]) or "none"


def _fusion(result: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: result[name] for name in ("parameters", "pairs", "steps")},
        "implicit accuracy, held out": result["held_out"]["implicit_accuracy"],
        "alarms": _alarms(result),
        **{f"mean weight, {name}": value for name, value in result["mean_weights"].items()},
    }


def _gate(fusion: Path, config: GenerateConfig) -> dict[str, Any]:
    """Return the gate's weights by expert, rows layers, columns the sampler's timesteps."""
    policy = load_policy(fusion, load_talking_model(config.model))
    sigmas = shifted_sigmas(config.steps, config.shift)[:-1]
    table = policy.table(sigmas)
    return {
        "timesteps": [round(1000 * sigma, 1) for sigma in sigmas.tolist()],
        "weights": {name: table[:, :, k].T.tolist() for k, name in enumerate(policy.experts)},
    }


def _draw_strip(clips: Path, output: Path) -> None:
    """Draw every second frame of the first two samples, the base's above the policy's."""
    rows = []
    for number in (1, 2):
        for name in ("base", "policy"):
            frames = read_video(clips / f"sample-{number}-{name}.mp4").frames[::2]
            rows.append(np.concatenate([cv2.resize(f, (80, 80)) for f in frames], axis=1))
            gap = 2 if name == "base" else 10
            rows.append(np.full((gap, rows[0].shape[1], 3), 255, np.uint8))
    picture = np.concatenate(rows[:-1])
    cv2.imwrite(str(output), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
