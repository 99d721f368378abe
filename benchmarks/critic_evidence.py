"""How often trained nano critics are right on unseen faces and speech, and what that rests on.

Puppet clips with known defects are rendered: 900 to train on, 240 for thresholds, 480 of other
people, sentences and voices to measure on. Two forms of critic are trained on the same ratings
with each of three seeds: the single stream of the paper, and a stream for each question; and the
single stream again on four times the ratings and three times the steps, and both with a tenth of
the clips silenced beside them. Rows per form: trained, untrained, majority, sound made silent,
another clip's sound. Figures are means over the seeds; intervals are 95 % bootstraps over
utterances of each clip's mean over the seeds.

    python benchmarks/critic_evidence.py --work DIR [--seeds 3] [--forms NAME ...]

What is already in DIR (clips, runs, log-odds) is kept, so that a stopped call goes on; forms that
are not asked for stay in the results as they are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header

from ft2.config import ClipFormat, load_config
from ft2.critic.config import CriticConfig
from ft2.critic.evaluate import measure
from ft2.critic.train import train_critic
from ft2.metrics import auc_value
from ft2.metrics.bootstrap import bootstrap_mean
from ft2.puppet import dataset
from ft2.runs import Silent, atomic_dir, write_atomic

RESULT = Path(__file__).parent / "results" / "critic_evidence.json"
CLIPS = {"train": 3600, "dev": 240, "test": 480}
WORLD_SEED = 100
DIMENSIONS = ("motion", "lip", "quality")
BAR = {"motion": 0.92, "lip": 0.87, "quality": 0.94}
"""The paper's accuracies, on other data (labels of reviews, see docs)."""


@dataclass(frozen=True)
class Form:
    """How a critic sees clips, and on how many it is trained."""

    streams: list[dict[str, Any]] = field(default_factory=list)
    clips: int = 900
    steps: int = 400
    copies: int = 3
    silence: float = 0


FORMS = {
    "single stream": Form(),
    "streams": Form(
        [
            {"answers": ["quality"], "every": 6},
            {"answers": ["motion"], "width": 32, "height": 32},
            {"answers": ["lip"], "crop": "mouth", "width": 64, "height": 32, "audio": True},
        ]
    ),
    "single stream, with silence": Form(silence=0.1),
    "single stream, four times the ratings": Form(clips=3600, steps=1200, copies=1),
    "single stream, four times the ratings, with silence": Form(
        clips=3600, steps=1200, copies=1, silence=0.1
    ),
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    forms = known.get("forms", {})
    for name in options.forms:
        form = FORMS[name]
        ratings = make_ratings(options.work, form.clips)
        runs = [judged(options.work, ratings, name, seed) for seed in range(options.seeds)]
        setting = {"training clips": form.clips, "varied copies": form.copies}
        setting |= {"steps": form.steps, "share of silent clips": form.silence}
        forms[name] = {**setting, **summarise(runs)}
        print(name, json.dumps(forms[name], indent=1), flush=True)
    command = "python benchmarks/critic_evidence.py --work DIR"
    report = {
        "machine": {**header(), "command": command},
        "setting": {"world_seed": WORLD_SEED, "dev": CLIPS["dev"], "test": CLIPS["test"]},
        "paper": BAR,
        "forms": {name: forms[name] for name in FORMS if name in forms},
        **{name: kept for name, kept in known.items() if name.startswith("before ")},
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


def make_ratings(work: Path, clips: int) -> Path:
    """Render the clips that are not there yet; return the ratings with so many to train on."""
    lines = []
    for split, count in CLIPS.items():
        folder = work / split
        if not folder.exists():
            with atomic_dir(folder) as made:
                dataset.build(made, count, split, WORLD_SEED, ClipFormat())
        every = (folder / "ratings.jsonl").read_text().splitlines()
        for line in every[:clips] if split == "train" else every:
            row = json.loads(line)
            lines.append(json.dumps(row | {"video": f"{split}/{row['video']}"}) + "\n")
    write_atomic(work / f"ratings-{clips}.jsonl", "".join(lines))
    return work / f"ratings-{clips}.jsonl"


def judged(work: Path, ratings: Path, name: str, seed: int) -> dict[str, Any]:
    """Train one critic, unless it is there; return its log-odds, thresholds and the answers."""
    form = FORMS[name]
    run = work / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
    overrides = [f"ratings={ratings}", f"steps={form.steps}", f"copies={form.copies}"]
    overrides += [f"seed={seed}", f"negatives={{silence: {form.silence}}}"]
    config = load_config(CriticConfig, "nano/critic", overrides)
    model = type(config.model).model_validate(config.model.model_dump() | {"streams": form.streams})
    train_critic(config.model_copy(update={"model": model}), run, True, Silent())
    file = run / "odds.npz"
    if not file.is_file():
        found = measure(ratings, run / "adapter")
        first = found.rows.first_windows()
        arrays = {name: odds.numpy() for name, odds in found.odds.items()}
        cuts = np.array(list(found.card.thresholds.values()))
        np.savez(
            file, **arrays, cuts=cuts, labels=found.rows.labels[first].numpy(),
            utterances=found.rows.utterances[first], faces=found.rows.identity_ids[first],
        )  # fmt: skip
    return dict(np.load(file))


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of one form."""
    truth, voices = runs[0]["labels"] > 0, runs[0]["utterances"]
    share = truth.mean(0)
    right = {
        "trained": [(r["critic_raw"] >= r["cuts"]) == truth for r in runs],
        "trained, threshold 0.5": [(r["critic_raw"] >= 0) == truth for r in runs],
        "untrained": [(r["untrained"] >= 0) == truth for r in runs],
        "majority": [truth == (share >= 0.5)],
        "sound made silent": [(r["silenced"] >= r["cuts"]) == truth for r in runs],
        "another clip's sound": [(r["audio_swapped"] >= r["cuts"]) == truth for r in runs],
    }
    rows: dict[str, Any] = {name: _row(np.array(hits), voices) for name, hits in right.items()}
    for name, key in (("sound made silent", "silenced"), ("another clip's sound", "audio_swapped")):
        caught = np.array([r[key] < r["cuts"] for r in runs])
        rows[f"{name}, No is right"] = {"lip": _row(caught, voices)["lip"]}
    areas = {
        d: [round(auc_value(r["critic_raw"][:, c], truth[:, c]), 4) for r in runs]
        for c, d in enumerate(DIMENSIONS)
    }
    counts = {
        "clips": len(truth),
        "utterances": len(set(voices.tolist())),
        "faces": len(set(runs[0]["faces"].tolist())),
    }
    return {**counts, "rows": rows, "auc": areas}


def _row(right: np.ndarray[Any, Any], voices: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return accuracy with its interval, and each seed's, of hits [seeds, clips, 3]."""
    found = {}
    for column, name in enumerate(DIMENSIONS):
        hits = right[:, :, column].astype(float)
        estimate = bootstrap_mean(hits.mean(0), voices).to_dict()
        found[name] = {k: round(float(estimate[k]), 4) for k in ("value", "low", "high")}
        found[name]["seeds"] = [round(float(x), 4) for x in hits.mean(1)]
    return found


if __name__ == "__main__":
    main()
