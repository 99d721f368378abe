"""What the nano branches change: motion strength, identity and prompt, each alone.

    python benchmarks/branches.py --weights DIR --out benchmarks/results/branches.json

Held-out faces and speech (the puppet world's split dev). Head movement is read by a probe of each
face that knows nothing of omega: ``motion`` is the variance of the head's place in squared face
units (eyes to mouth), ``turn`` the deviation of its rotation in degrees, ``nod`` the range of its
pitch and ``pitch`` its mean once the head is held (after 0.4 s), both in rad. "High" and "low": the
face embeddings of held-out people who hold their heads highest and lowest (``ft2.puppet.manner``),
under otherwise equal conditions. Lip, quality and naturalness are the judges of
``ft2.puppet.judges``. "Picture dropped": the transformer sees neither the picture's embedding nor
its latents, only the face embedding; the codec still moves the picture. Intervals: 95 %, over the
faces.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from machine import header
from people import People, readable, verification

from ft2.config import ClipFormat, load_config
from ft2.generator.config import GenerateConfig
from ft2.generator.sample import generate_batch
from ft2.metrics.bootstrap import bootstrap, bootstrap_mean, bootstrap_paired
from ft2.puppet import identities, judges, world
from ft2.puppet.curves import SETTLING
from ft2.puppet.manner import held_pitch
from ft2.puppet.probe import PuppetProbe
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

LEVELS = (0.1, 0.5, 1.0)
MEASURES = ("motion", "turn", "nod", "pitch", "lip", "quality", "natural")
Table = dict[str, np.ndarray]


class Bench:
    """Held-out clips, their probes, and sampling with changed conditions."""

    def __init__(self, model: TalkingModel, faces: int, clips: int) -> None:
        self.model, self.each = model, clips
        self.clips, self.probes, holds = [], [], []
        for number in range(faces):
            seed, clip = 10_900_000 + number, ClipFormat()
            self.clips += world.random_clips("dev", seed, clips, clip, 0.0)
            person = identities.draw("dev", seed)
            holds += [held_pitch(person)] * clips
            self.probes += [PuppetProbe.fit(person, clip)] * clips
        self.hold = np.array(holds)
        self.people = People(model.face, "dev", 10_940_000, 48)
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
            held = pose[round(SETTLING * ClipFormat().fps) :, 4].mean()
            rows.append((pose[:, :2].var(0).sum(), turn, np.ptp(pose[:, 4]), held, found.lip,
                         found.quality, found.motion))  # fmt: skip
        table = dict(zip(MEASURES, np.array(rows, float).T, strict=True))
        return table | {"frames": made.astype(np.float32)}

    def mean(self, values: np.ndarray) -> list[float]:
        return _three(bootstrap_mean(values, groups=self.faces))

    def extremes(self) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
        return self.people.extremes(len(self.clips) // self.each, len(self.clips))

    def asked_and_shown(self, found: dict[str, Table], prefix: str, own: str) -> dict[str, object]:
        """Compare the pitch that an embedding asks for with the measured one, clip by clip."""
        other = "another person's embedding" if not prefix else f"{prefix}another's embedding"
        holds = {own: self.hold, other: np.roll(self.hold, self.each)}
        holds |= {f"{prefix}embedding: {n}": hold for n, (_, hold) in self.extremes().items()}
        asked = np.stack(list(holds.values()), 1)
        shown = np.stack([found[name]["pitch"] for name in holds], 1)
        asked, shown = (part - part.mean(1, keepdims=True) for part in (asked, shown))
        low, high = (found[f"{prefix}embedding: {n}"]["pitch"] for n in ("low", "high"))
        return {
            "low minus high, pitch": self.versus(low, high),
            "low minus high, asked": round(float((asked[:, 3] - asked[:, 2]).mean()), 4),
            "clips in which low is lower": round(float((low > high).mean()), 3),
            "correlation of asked and measured": _three(
                bootstrap(_correlation, asked, shown, groups=self.faces)
            ),
        }

    def versus(self, one: np.ndarray, other: np.ndarray) -> list[float]:
        return _three(bootstrap_paired(one, other, groups=self.faces))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


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
    for name, (faces, _) in bench.extremes().items():
        asked[f"embedding: {name}"] = replace(cond, identity=faces)
        asked[f"picture dropped, embedding: {name}"] = dropped(replace(cond, identity=faces))
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
        "embedding of other manners": bench.asked_and_shown(found, "", "omega 0.5"),
        "embedding of other manners, picture dropped": bench.asked_and_shown(
            found, "picture dropped, ", "picture dropped"
        ),
        "face encoder, manner of held-out people from the embedding": readable(
            bench.model.face, bench.people
        ),
        "face encoder, verification AUC, 60 held-out people": verification(bench.model.face),
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
