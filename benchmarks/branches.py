"""What the nano branches change: motion strength, identity and prompt, each alone.

    python benchmarks/branches.py --weights DIR --out benchmarks/results/branches.json

Held-out faces and speech (the puppet world's split dev). Head movement is read by a probe of each
face that knows nothing of omega: ``motion`` is the variance of the head's place in squared face
units (eyes to mouth), ``turn`` the deviation of its rotation in degrees, ``nod`` the range of its
pitch in rad. Lip, quality and naturalness are the judges of ``ft2.puppet.judges``. "Picture
dropped": the transformer sees neither the picture's embedding nor its latents, only the face
embedding; the codec still moves the picture. Intervals: 95 %, over faces.
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
from ft2.wan.model import TalkingModel
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

LEVELS = (0.1, 0.5, 1.0)
MEASURES = ("motion", "turn", "nod", "lip", "quality", "natural")
Table = dict[str, np.ndarray]


class Bench:
    """Held-out clips, their probes, and sampling with changed conditions."""

    def __init__(self, model: TalkingModel, faces: int, clips: int) -> None:
        self.model, self.each = model, clips
        self.clips, self.probes = [], []
        for number in range(faces):
            seed, clip = 10_900_000 + number, ClipFormat()
            self.clips += world.random_clips("dev", seed, clips, clip, 0.0)
            self.probes += [PuppetProbe.fit(identities.draw("dev", seed), clip)] * clips
        self.faces = [c.identity_id for c in self.clips]
        keys = [f"batch_size={len(self.clips)}"]
        self.config = load_config(GenerateConfig, "nano/generate", keys)

    def encode(self, captions: list[str]) -> Conditioning:
        pictures = np.stack([c.frames[0] for c in self.clips])
        sounds = [c.audio for c in self.clips]
        return self.model.encode_conditions(pictures, sounds, captions)

    def sample(self, cond: Conditioning) -> Table:
        keys = [(c.audio_id, 0) for c in self.clips]
        made = generate_batch(self.model, cond, keys, self.config)
        rows = []
        for frames, probe, truth in zip(made, self.probes, self.clips, strict=True):
            pose = probe.track(frames).pose
            found = judges.judge(frames, probe, truth.curves, ClipFormat().fps)
            turn = np.degrees(np.sqrt(pose[:, 2:].var(0).sum()))
            rows.append((pose[:, :2].var(0).sum(), turn, np.ptp(pose[:, 4]), found.lip,
                         found.quality, found.motion))  # fmt: skip
        table = dict(zip(MEASURES, np.array(rows, float).T, strict=True))
        return table | {"frames": made.astype(np.float32)}

    def mean(self, values: np.ndarray) -> list[float]:
        return _three(bootstrap_mean(values, groups=self.faces))

    def versus(self, one: np.ndarray, other: np.ndarray) -> list[float]:
        return _three(bootstrap_paired(one, other, groups=self.faces))


def _three(estimate: object) -> list[float]:
    return [round(float(getattr(estimate, n)), 5) for n in ("value", "low", "high")]


def dropped(cond: Conditioning) -> Conditioning:
    """Return conditions in which the transformer does not see the picture."""
    known = cond.latents_mask_y.clone()
    known[:, 4:] = 0
    return replace(cond, latents_mask_y=known, image=torch.zeros_like(cond.image))


def samples(bench: Bench) -> dict[str, Table]:
    """Return what is sampled with each input changed alone."""
    captions = [c.caption for c in bench.clips]
    cond = bench.encode(captions)
    other = cond.identity.roll(bench.each, 0)
    asked = {"without branches": replace(cond, identity=None, motion=None)}
    for level in LEVELS:
        asked[f"omega {level}"] = replace(cond, motion=torch.full_like(cond.motion, level))
    asked["motion branch alone"] = replace(cond, identity=None)
    asked["identity branch alone"] = replace(cond, motion=None)
    asked["another person's embedding"] = replace(cond, identity=other)
    asked["picture dropped"] = dropped(cond)
    asked["picture dropped, another's embedding"] = dropped(replace(cond, identity=other))
    asked["picture dropped, no embedding"] = dropped(replace(cond, identity=None))
    for name, words in (("nodding", "a person talks, nodding"),
                        ("level", "a person talks, holding the head level")):  # fmt: skip
        asked[f"prompt: {name}"] = bench.encode([words] * len(bench.clips))
    return {name: bench.sample(given) for name, given in asked.items()}


def report(bench: Bench, found: dict[str, Table]) -> dict[str, object]:
    """Return means, differences to omega 0.5, and the named effects."""
    neutral = found["omega 0.5"]
    low, middle, high = (found[f"omega {level}"] for level in LEVELS)
    rising = [
        float(((low[m] < middle[m]) & (middle[m] < high[m])).mean()) for m in ("motion", "turn")
    ]
    blind = found["picture dropped"]
    wrong = found["picture dropped, another's embedding"]
    return {
        "machine": header(),
        "clips": len(bench.clips),
        "means": {n: {m: bench.mean(t[m]) for m in MEASURES} for n, t in found.items()},
        "minus omega 0.5": {
            n: {m: bench.versus(t[m], neutral[m]) for m in MEASURES}
            | {"pixels": round(float(np.abs(t["frames"] - neutral["frames"]).mean()), 3)}
            for n, t in found.items() if n != "omega 0.5"
        },
        "omega 1.0 minus 0.1, motion": bench.versus(high["motion"], low["motion"]),
        "omega 1.0 minus 0.1, turn in degrees": bench.versus(high["turn"], low["turn"]),
        "clips whose motion rises over 0.1, 0.5, 1.0": round(rising[0], 3),
        "clips whose turn rises over 0.1, 0.5, 1.0": round(rising[1], 3),
        "nodding minus level, nod": bench.versus(
            found["prompt: nodding"]["nod"], found["prompt: level"]["nod"]
        ),
        "picture dropped, another's embedding minus own": {
            m: bench.versus(wrong[m], blind[m]) for m in MEASURES
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="nano")
    parser.add_argument("--faces", type=int, default=6)
    parser.add_argument("--clips", type=int, default=4, help="clips of each face")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    spec = WanSpec(weights=args.weights, branches=("identity", "motion"))
    bench = Bench(load_talking_model(spec), args.faces, args.clips)
    text = json.dumps(report(bench, samples(bench)), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
