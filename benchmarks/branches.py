"""What the nano branches change: motion strength, identity and prompt, each alone.

    python benchmarks/branches.py --weights DIR --out benchmarks/results/branches.json

Held-out faces and speech (the puppet world's split dev). Motion is read by a probe of each face
that knows nothing of omega: the variance of the head's place, in squared face units (eyes to
mouth). Lip and quality are the judges of ``ft2.puppet.judges``. Intervals: 95 %, over faces.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from machine import header

from ft2.config import ClipFormat, load_config
from ft2.generator.config import GenerateConfig
from ft2.generator.sample import generate_batch
from ft2.metrics.bootstrap import bootstrap_mean, bootstrap_paired
from ft2.puppet import identities, judges, world
from ft2.puppet.probe import PuppetProbe
from ft2.wan.condition import Conditioning
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

LEVELS = (0.1, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="nano")
    parser.add_argument("--faces", type=int, default=6)
    parser.add_argument("--clips", type=int, default=4, help="clips of each face")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    clip = ClipFormat()
    spec = WanSpec(weights=args.weights, branches=("identity", "motion"))
    model = load_talking_model(spec)
    config = load_config(GenerateConfig, "nano/generate", [f"batch_size={args.faces * args.clips}"])
    clips, probes = [], []
    for number in range(args.faces):
        seed = 10_900_000 + number
        clips += world.random_clips("dev", seed, args.clips, clip, 0.0)
        probes += [PuppetProbe.fit(identities.draw("dev", seed), clip)] * args.clips
    keys = [(c.audio_id, 0) for c in clips]
    faces = [c.identity_id for c in clips]

    def encode(captions: list[str]) -> Conditioning:
        pictures = np.stack([c.frames[0] for c in clips])
        return model.encode_conditions(pictures, [c.audio for c in clips], captions)

    def sample(cond: Conditioning, scale: float | None = None) -> dict[str, np.ndarray]:
        made = generate_batch(
            model, cond, keys, config.model_copy(update={"identity_scale": scale})
        )
        rows = []
        for frames, probe, truth in zip(made, probes, clips, strict=True):
            pose = probe.track(frames).pose
            found = judges.judge(frames, probe, truth.curves, clip.fps)
            rows.append((pose[:, :2].var(0).sum(), np.ptp(pose[:, 4]), found.lip, found.quality,
                         found.motion))  # fmt: skip
        names = ("motion", "nod", "lip", "quality", "natural")
        table = dict(zip(names, np.array(rows, float).T, strict=True))
        return table | {"frames": made.astype(np.float32)}

    captions = [c.caption for c in clips]
    cond = encode(captions)
    neutral = sample(cond)
    bare = replace(cond, identity=None, motion=None)
    found = {"without branches": sample(bare), "both, omega 0.5": neutral}
    for level in (0.1, 1.0):
        found[f"both, omega {level}"] = sample(
            replace(cond, motion=torch.full_like(cond.motion, level))
        )
    found["motion branch alone"] = sample(replace(cond, identity=None))
    found["identity branch alone"] = sample(replace(cond, motion=None))
    found["another person's embedding"] = sample(
        replace(cond, identity=cond.identity.roll(args.clips, 0))
    )
    for name, words in (("nodding", "a person talks, nodding"),
                        ("level", "a person talks, holding the head level")):  # fmt: skip
        found[f"prompt: {name}"] = sample(encode([words] * len(clips)))

    def mean(values: np.ndarray) -> list[float]:
        got = bootstrap_mean(values, groups=faces)
        return [round(float(v), 5) for v in (got.value, got.low, got.high)]

    def versus(one: np.ndarray, other: np.ndarray) -> list[float]:
        got = bootstrap_paired(one, other, groups=faces)
        return [round(float(v), 5) for v in (got.value, got.low, got.high)]

    measures = ("motion", "nod", "lip", "quality", "natural")
    report = {
        "machine": header(),
        "clips": len(clips),
        "means": {n: {m: mean(t[m]) for m in measures} for n, t in found.items()},
        "minus both, omega 0.5": {
            n: {m: versus(t[m], neutral[m]) for m in measures}
            | {"pixels": round(float(np.abs(t["frames"] - neutral["frames"]).mean()), 3)}
            for n, t in found.items() if n != "both, omega 0.5"
        },
        "omega 1.0 minus 0.1, motion": versus(
            found["both, omega 1.0"]["motion"], found["both, omega 0.1"]["motion"]
        ),
        "nodding minus level, nod": versus(
            found["prompt: nodding"]["nod"], found["prompt: level"]["nod"]
        ),
    }  # fmt: skip
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
