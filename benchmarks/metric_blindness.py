"""Which of our metrics sees which defect? Measured on puppets whose defects are known.

For faces and sentences that no training uses: clean clips and clips with one defect each, at a
strength of 0.5 or more. Prints for each defect and column the AUC with which the column tells clean
from spoiled, whichever way it moves (0.5: blind, 1: always told), and writes
benchmarks/results/metric_blindness.json. A column is called blind where the interval over faces
reaches 0.6 or less.

    python benchmarks/metric_blindness.py [--faces 6] [--clips 4]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from machine import header

from ft2.config import ClipFormat
from ft2.metrics import auc
from ft2.metrics.catalogue import COLUMNS
from ft2.metrics.config import EvaluateConfig
from ft2.metrics.evaluate import choose, measure_clip
from ft2.metrics.measure import Clip
from ft2.puppet import identities, world
from ft2.puppet.defects import DEFECTS, Defect
from ft2.puppet.render import Puppet

RESULT = Path(__file__).parent / "results" / "metric_blindness.json"
METRICS = ("face", "lips", "motion", "picture")
BLIND = 0.6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=6)
    parser.add_argument("--clips", type=int, default=4, help="clips of each kind for each face")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows: list[dict[str, Any]] = []
    for number in range(options.faces):
        rows += measure_face(number, options.clips, options.seed)
        print(f"face {number + 1} of {options.faces}: {len(rows)} clips", flush=True)
    report = {"machine": header(), "setting": vars(options), **summarise(rows)}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def measure_face(number: int, clips: int, seed: int) -> list[dict[str, Any]]:
    """Measure all kinds of clips of one new face of the test split."""
    form, bench = ClipFormat(), choose(EvaluateConfig(metrics=METRICS))
    identity = identities.draw("test", 5000 + 1000 * seed + number)
    puppet, spoken = Puppet(identity, form.width), world.utterances("test", 40)
    rows = []
    for kind in ("clean", *DEFECTS):
        for turn in range(clips):
            rng = np.random.default_rng([seed, number, turn, ("clean", *DEFECTS).index(kind)])
            utterance = spoken[rng.integers(len(spoken))]
            starts = world.start_times(utterance, form.seconds)
            start = starts[rng.integers(len(starts))]
            strength, its_seed = float(rng.uniform(0.5, 1.0)), int(rng.integers(2**31))
            spoiled = [] if kind == "clean" else [Defect(kind, strength, its_seed)]
            made = world.make_clip(
                identity, utterance, start, its_seed, spoiled, form, puppet=puppet
            )
            clip = Clip(Path("clip.mp4"), made.frames, form.fps, made.audio)
            values, _, _ = measure_clip(clip, bench)
            rows.append({"kind": kind, "face": number, "values": values})
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each defect and column how well the two kinds are told apart, and the means."""
    names = [c for c in COLUMNS if any(row["values"].get(c) is not None for row in rows)]
    clean = [row for row in rows if row["kind"] == "clean"]
    report: dict[str, Any] = {"clips": len(rows), "columns": names, "clean": {}, "defects": {}}
    report["clean"] = {c: mean(clean, c) for c in names}
    for kind, dimension in DEFECTS.items():
        spoiled = [row for row in rows if row["kind"] == kind]
        cells = {c: told(clean, spoiled, c) for c in names}
        report["defects"][kind] = {"dimension": dimension, "columns": cells}
    return report


def mean(rows: list[dict[str, Any]], column: str) -> float | None:
    """Return the mean of a column over clips that have it."""
    values = [row["values"][column] for row in rows if row["values"].get(column) is not None]
    return round(float(np.mean(values)), 4) if values else None


def told(clean: list[dict[str, Any]], spoiled: list[dict[str, Any]], column: str) -> dict[str, Any]:
    """Return the AUC with which a column tells spoiled from clean, its direction and interval."""
    rows = [row for row in clean + spoiled if row["values"].get(column) is not None]
    truth = [row["kind"] != "clean" for row in rows]
    lost = sum(row["values"].get(column) is None for row in spoiled)
    if not any(truth) or all(truth):
        return {"value": None, "lost": lost}
    scores = [row["values"][column] for row in rows]
    groups = [row["face"] for row in rows]
    rises = auc(scores, truth, groups)
    found = rises if rises.value >= 0.5 else auc([-s for s in scores], truth, groups)
    direction = "rises" if rises.value >= 0.5 else "falls"
    kept = {k: round(v, 3) for k, v in (("value", found.value), ("low", found.low))}
    blind = found.low <= BLIND
    return {**kept, "direction": direction, "blind": blind, "lost": lost,
            "mean": mean(spoiled, column)}  # fmt: skip


def show(report: dict[str, Any]) -> None:
    """Print the table; a column that is blind to a defect has a dot."""
    names = report["columns"]
    print(f"{'':9}" + "".join(f"{name[:15]:>16}" for name in names))
    for kind, entry in report["defects"].items():
        print(f"{kind:9}" + "".join(f"{cell(entry['columns'][name]):>16}" for name in names))


def cell(found: dict[str, Any]) -> str:
    """Return one cell of the table: AUC and direction, or a dot."""
    if found["value"] is None:
        return f"lost {found['lost']}"
    if found["blind"]:
        return "."
    return f"{found['value']:.2f} {found['direction']}"


if __name__ == "__main__":
    main()
