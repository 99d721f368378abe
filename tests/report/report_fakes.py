"""A report about nothing: made-up figures and clips of moving colour, to look at the page."""

import math
from pathlib import Path

import numpy as np

from ft2.media import write_png, write_video
from ft2.report import (
    ClipShown,
    Command,
    Curve,
    Estimate,
    Expert,
    FileEntry,
    GateMap,
    PairExample,
    Report,
    Sample,
    ScoreRow,
    Stage,
    Trained,
)

DIMENSIONS = ("motion", "lip", "quality")


def fake_clip(folder: Path, name: str, hue: float) -> ClipShown:
    """Write a 64-px clip with a moving blob and a tone, and its poster."""
    grid = np.mgrid[0:64, 0:64] / 64.0
    frames = []
    for i in range(21):
        y, x = 0.5 + 0.2 * math.sin(i / 3), 0.5 + 0.2 * math.cos(i / 4)
        blob = np.exp(-((grid[0] - y) ** 2 + (grid[1] - x) ** 2) * 30)
        colour = np.array([math.sin(hue), math.sin(hue + 2), math.sin(hue + 4)]) * 90 + 130
        frames.append((blob[..., None] * colour + 30).clip(0, 255).astype(np.uint8))
    audio = (0.2 * np.sin(np.arange(26880) * 0.05)).astype(np.float32)
    write_video(folder / f"clips/{name}.mp4", np.stack(frames), 12.5, audio)
    write_png(folder / f"clips/{name}.png", frames[0])
    return ClipShown("", f"clips/{name}.mp4", f"clips/{name}.png")


def labelled(clip: ClipShown, label: str, note: str = "") -> ClipShown:
    return ClipShown(label, clip.video, clip.poster, note)


def estimate(value: float, half: float = 0.03, n: int = 96) -> Estimate:
    return Estimate(value, value - half, value + half, n)


def score_rows() -> list[ScoreRow]:
    names = ["base", "motion expert", "lip expert", "quality expert"]
    names += ["merge 1/3", "merge 2/3", "merge 1", "gated policy"]
    rows = []
    for i, name in enumerate(names):
        values = {"motion": estimate(-2.1 + 0.2 * i, 0.15), "lip": estimate(0.3 + 0.02 * i)}
        values["quality"] = estimate(24.1 + 0.1 * i, 0.12)
        values["lip by landmarks"] = estimate(0.15 + 0.02 * i, 0.05)
        delta = {k: estimate(0.1 * i - 0.05, 0.06) for k in values} if i else {}
        rows.append(ScoreRow(name, values, highlight=name == "gated policy", delta=delta))
    return rows


def expert(dimension: str, index: int) -> Expert:
    steps = list(range(0, 150, 5))
    loss = [0.693 * math.exp(-s / (150 + 60 * index)) for s in steps]
    wave = [0.5 + 0.3 * (1 - math.exp(-s / 40)) + 0.03 * math.sin(s) for s in steps]
    return Expert(
        dimension,
        [Curve("training", steps, loss), Curve("held out", steps, [x + 0.08 for x in loss], True)],
        [Curve("training", steps, wave), Curve("held out", steps, [x - 0.07 for x in wave], True)],
        estimate(0.71, 0.05, 120),
        "Beta 200, 150 steps.",
    )


def fake_report(folder: Path) -> Report:
    """Write fake media under `folder` and return a report about them."""
    clips = [fake_clip(folder, f"c{i}", i * 0.7) for i in range(4)]
    rows = score_rows()
    gate = {
        d: [[0.6 + 0.2 * math.sin(layer + t / 3 + i) for t in range(12)] for layer in range(6)]
        for i, d in enumerate(DIMENSIONS)
    }
    critic = [
        ("always the majority answer", 0.55),
        ("untrained critic", 0.47),
        ("trained critic", 0.86),
        ("sound made silent", 0.52),
        ("another clip's sound", 0.5),
    ]
    return Report(
        title="From ratings to a better talking face",
        lead="A critic learned to judge talking clips from ratings, ranked what the base "
        "generator makes, and three experts and a gate learned from that ranking.",
        headline=[rows[0], rows[-1]],
        stages=[Stage("world", 41.2, 812, "1,200 clips, 150 conditions"),
                Stage("critic", 130, 1500, "lip 0.51 to 0.87")],
        trained=[
            Trained("Base generator", "Puppet clips, half of them with defects", "1.9 M", None),
            Trained("Critic (LoRA)", "1,000 rated clips, 20 faces, 60 utterances", "145 k", 130),
            Trained("Lip expert (LoRA)", "267 pairs the critic decided on lip", "99 k", 40),
        ],
        samples=[
            Sample(f"Condition {i}", "“The birch canoe slid on the smooth planks”, seed 3",
                   [labelled(clips[i], "Base"), labelled(clips[i + 1], "Policy")])
            for i in range(3)
        ],
        critic=[
            ScoreRow(
                n,
                {d: estimate(v + 0.02 * i, 0.04, 240) for i, d in enumerate(DIMENSIONS)},
                highlight=n == "trained critic",
            )
            for n, v in critic
        ],
        critic_note="Measured on clips of faces and speech that no training saw.",
        pairs=[{"split": "train", "conditions": 150, "clips": 1200, "motion": 279, "lip": 267,
                "quality": 253, "fusion": 88},
               {"split": "dev", "conditions": 24, "clips": 192, "motion": 44, "lip": 41,
                "quality": 39, "fusion": 12}],
        pair_examples=[
            PairExample(d, labelled(clips[i], "Chosen", "P(yes) 0.91"),
                        labelled(clips[i + 1], "Rejected", "P(yes) 0.12"))
            for i, d in enumerate(DIMENSIONS)
        ],
        experts=[expert(d, i) for i, d in enumerate(DIMENSIONS)],
        gate=GateMap([1000 - 83 * i for i in range(12)], gate),
        scores=rows,
        scores_note="Means over 48 held-out conditions with two seeds each; whiskers are 95 % "
        "intervals, bootstrap over utterances.",
        judges={
            "motion": "Likeness of head motion to natural motion, higher is better.",
            "lip": "Concordance of the mouth with the true one, 1 is perfect.",
            "quality": "Likeness to the clean face in dB, higher is better.",
            "lip by landmarks": "The same by a face tracker that no training used.",
        },
        files=[FileEntry("critic/adapter", "the trained critic"),
               FileEntry("nsq/data", "pairs and clips as Arrow shards")],
        commands=[Command("Train the critic",
                          "ft2 critic train nano/critic ratings=runs/demo/world/ratings.jsonl "
                          "-o runs/demo/critic")],
        notes=["The base generator is deliberately imperfect: half of its training clips have "
               "defects, so that preferences have something to improve."],
    )  # fmt: skip
