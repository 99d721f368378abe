"""Do the ground-truth judges tell clean clips from each of the 15 known defects?

For faces and sentences that no training uses: clean clips, and clips with one defect at a
strength of 0.5 or more, written as mp4 and read back, then judged. Prints, for each defect, the
AUC of the judge of its own dimension (1: always lower than clean) and of the two others (0.5: not
misled), and writes benchmarks/results/judges.json. Intervals are bootstrapped over faces.

    python benchmarks/judges.py [--faces 8] [--clips 6] [--landmarks]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import header

from ft2 import media
from ft2.config import ClipFormat
from ft2.metrics import auc, auc_value
from ft2.puppet import identities, world
from ft2.puppet.curves import Curves
from ft2.puppet.defects import DEFECTS, Defect
from ft2.puppet.judges import judge, landmark_lip
from ft2.puppet.probe import PuppetProbe
from ft2.puppet.render import Puppet

DIMENSIONS = ("motion", "lip", "quality")
RESULT = Path(__file__).parent / "results" / "judges.json"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=8)
    parser.add_argument("--clips", type=int, default=6, help="clips of each kind for each face")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--landmarks", action="store_true", help="also the landmark judge of lips")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows: list[dict[str, Any]] = []
    timings: dict[str, list[float]] = {"fit_cpu_seconds": [], "judge_cpu_ms": []}
    for number in range(options.faces):
        rows += judge_face(number, options.clips, options.seed, options.landmarks, timings)
        print(f"face {number + 1} of {options.faces}: {len(rows)} clips", flush=True)
    report = summarise(rows)
    report["speed"] = {name: round(float(np.median(v)), 2) for name, v in timings.items()}
    report["setting"] = vars(options)
    report["machine"] = header()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    show(report)


def judge_face(
    number: int, clips: int, seed: int, landmarks: bool, timings: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Judge all kinds of clips of one new face of the test split."""
    clip = ClipFormat()
    identity = identities.draw("test", 1000 * seed + number)
    puppet, spoken = Puppet(identity, clip.width), world.utterances("test", 40)
    began = time.process_time()
    probe = PuppetProbe.fit(identity, clip, seed)
    timings["fit_cpu_seconds"].append(time.process_time() - began)
    rows = []
    for kind in ("clean", *DEFECTS):
        for turn in range(clips):
            rng = np.random.default_rng([seed, number, turn, ("clean", *DEFECTS).index(kind)])
            utterance = spoken[rng.integers(len(spoken))]
            starts = world.start_times(utterance, clip.seconds)
            start = starts[rng.integers(len(starts))]
            strength, its_seed = float(rng.uniform(0.5, 1.0)), int(rng.integers(2**31))
            spoiled = [] if kind == "clean" else [Defect(kind, strength, its_seed)]
            made = world.make_clip(
                identity, utterance, start, its_seed, spoiled, clip, puppet=puppet
            )
            frames = through_mp4(made.frames, made.audio, clip)
            began = time.process_time()
            found = judge(frames, probe, made.curves, clip.fps)
            timings["judge_cpu_ms"].append(1000 * (time.process_time() - began))
            row = {"kind": kind, "face": number, **{d: getattr(found, d) for d in DIMENSIONS}}
            row["parts"], row["still"] = found.parts, silent(made.curves)
            if landmarks and (kind == "clean" or DEFECTS[kind] == "lip"):
                row["landmark"] = landmark_lip(frames, made.curves)
            rows.append(row)
    return rows


def through_mp4(frames: media.Frames, audio: media.Audio, clip: ClipFormat) -> media.Frames:
    """Return the frames as a viewer of the mp4 gets them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        media.write_video(path, frames, clip.fps, audio)
        return media.read_clip(path, clip).frames


def silent(curves: Curves) -> bool:
    """Say whether the mouth hardly moves: then no lip defect can be seen."""
    return float(np.std(curves.open)) < 0.05


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and AUCs for each kind of clip."""
    report: dict[str, Any] = {"clips": len(rows), "defects": {}}
    clean = [row for row in rows if row["kind"] == "clean"]
    report["clean"] = {d: spread(clean, d) for d in DIMENSIONS}
    report["clean_parts"] = {
        name: round(float(np.mean([row["parts"][name] for row in clean])), 3)
        for name in clean[0]["parts"]
    }
    for kind, dimension in DEFECTS.items():
        spoiled = [row for row in rows if row["kind"] == kind]
        entry: dict[str, Any] = {"dimension": dimension}
        for name in DIMENSIONS:
            entry[name] = spread(spoiled, name)
            entry[f"auc_{name}"] = separation(clean, spoiled, name)
        if "landmark" in spoiled[0]:
            entry["auc_landmark"] = separation(clean, spoiled, "landmark")
        report["defects"][kind] = entry
    return report


def spread(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Return mean and standard deviation of a score."""
    values = [row[name] for row in rows]
    return {"mean": round(float(np.mean(values)), 3), "std": round(float(np.std(values)), 3)}


def separation(
    clean: list[dict[str, Any]], spoiled: list[dict[str, Any]], name: str
) -> dict[str, Any]:
    """Return the AUC of clean over spoiled with its interval over faces."""
    rows = [row for row in clean + spoiled if np.isfinite(row[name])]
    truth = [row["kind"] == "clean" for row in rows]
    scores, groups = [row[name] for row in rows], [row["face"] for row in rows]
    if not any(truth) or all(truth):
        return {"value": float("nan"), "low": None, "high": None, "n": len(rows)}
    assert np.isfinite(auc_value(scores, truth))
    return auc(scores, truth, groups).to_dict()


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    columns = [*DIMENSIONS, "landmark"]
    print(f"{'':10}" + "".join(f"{name:>24}" for name in columns))
    for kind, entry in report["defects"].items():
        cells = []
        for name in columns:
            found = entry.get(f"auc_{name}")
            text = "" if found is None else f"{found['value']:.3f}"
            if found is not None and found["low"] is not None:
                text += f" [{found['low']:.2f},{found['high']:.2f}]"
            own = "*" if name == entry["dimension"] else " "
            cells.append(f"{text + own:>24}")
        print(f"{kind:10}" + "".join(cells))
    print("clean:", report["clean"], report["speed"])


if __name__ == "__main__":
    main()
