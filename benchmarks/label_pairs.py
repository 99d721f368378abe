"""The pairs of a demo's dataset beside the truth of its clips, and the choices of `label_study`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ft2.media import read_video
from ft2.metrics import bootstrap_paired
from ft2.pairs import DIMENSIONS, LABELS, ClipRecord, Condition, read_clips, read_conditions
from ft2.pairs.read import read_pair_records
from ft2.pairs.schema import SCHEMA_VERSION
from ft2.puppet import judges
from ft2.puppet.truth import truth_of
from ft2.runs import read_json, write_json
from ft2.wan.model import TalkingModel

CAP = 4
"""Pairs of a condition that `most` keeps."""


@dataclass(frozen=True)
class Pair:
    """Two clips of one condition, the chosen one first."""

    condition: str
    chosen: str
    rejected: str
    gap: float
    """Difference in P(yes)."""


@dataclass(frozen=True)
class Data:
    """A demo's dataset and the truth of its clips."""

    demo: Path
    clips: dict[str, ClipRecord]
    truth: dict[str, dict[str, float]]
    built: dict[str, list[Pair]]
    """The dataset's pairs by dimension."""

    def truly(self, pair: Pair, dimension: str) -> float:
        """How much better the chosen side truly is."""
        return self.truth[pair.chosen][dimension] - self.truth[pair.rejected][dimension]

    def wins(self, pair: Pair, dimension: str) -> float:
        """How much higher the chosen side's P(yes) is."""
        return _p(self.clips[pair.chosen], dimension) - _p(self.clips[pair.rejected], dimension)

    def meetings(self, value: Callable[[ClipRecord], float]) -> list[Pair]:
        """Return all pairs of a condition's clips, the one with the higher value chosen."""
        groups: dict[str, list[ClipRecord]] = {}
        for clip in self.clips.values():
            groups.setdefault(clip.condition_id, []).append(clip)
        found = []
        for condition, members in groups.items():
            for i, a in enumerate(members):
                for b in members[i + 1 :]:
                    first, second = (a, b) if value(a) >= value(b) else (b, a)
                    gap = value(first) - value(second)
                    found.append(Pair(condition, first.clip_id, second.clip_id, gap))
        return found


def load(demo: Path, work: Path, model: TalkingModel) -> Data:
    """Read the dataset and judge its clips by the truth (kept in a file)."""
    clips, record = read_clips(demo / "nsq"), work / "truth.json"
    if not record.is_file():
        conditions = {c.condition_id: c for c in read_conditions(demo / "world/conditions.jsonl")}
        truth = {}
        for clip in clips.values():
            path = work / "clip.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(clip.video.to_pybytes())
            truth[clip.clip_id] = judged(path, conditions[clip.condition_id], model)
        write_json(record, truth)
    built: dict[str, list[Pair]] = {d: [] for d in DIMENSIONS}
    for row in read_pair_records(demo / "nsq"):
        for column, d in enumerate(DIMENSIONS):
            if d in row.stores:
                sides = (row.clip_a, row.clip_b)
                chosen, rejected = sides if row.labels[column] == "A" else sides[::-1]
                gap = _p(clips[chosen], d) - _p(clips[rejected], d)
                built[d].append(Pair(row.condition_id, chosen, rejected, gap))
    return Data(demo, clips, read_json(record), built)


def judged(video: Path, condition: Condition, model: TalkingModel) -> dict[str, float]:
    """Return the true scores of a clip."""
    decoded, truth = read_video(video), truth_of(condition, model.clip)
    found = judges.judge(decoded.frames, truth.probe, truth.driving, decoded.fps)
    return {d: getattr(found, d) for d in DIMENSIONS}


def agreement(data: Data, dimension: str) -> dict[str, Any]:
    """Return how often chosen is truly better: the dataset's pairs, and all by their gap."""
    built = [data.truly(p, dimension) > 0 for p in data.built[dimension]]
    clean = [data.truly(p, dimension) > 0 for p in without_conflict(data, dimension)]
    pairs = data.meetings(lambda clip: _p(clip, dimension))
    right = np.array([data.truly(p, dimension) > 0 for p in pairs])
    gaps = np.array([p.gap for p in pairs])
    owners = np.array([p.condition for p in pairs])
    quarters = np.quantile(gaps, [0, 0.25, 0.5, 0.75, 0.9, 1])
    by_gap = [
        {"from": round(float(low), 3), **_share(right[inside], owners[inside])}
        for low, high in pairwise(quarters)
        for inside in [(gaps >= low) & (gaps <= high)]
    ]
    widest = [data.truly(p, dimension) > 0 for p in most(pairs)]
    spread = np.std([data.truly(p, dimension) for p in pairs])
    return {
        "built": _share(np.array(built), np.array([p.condition for p in data.built[dimension]])),
        "without_conflict": {"n": len(clean), "agree": round(float(np.mean(clean)), 3)},
        "widest": {"n": len(widest), "agree": round(float(np.mean(widest)), 3)},
        "all_by_gap": by_gap,
        "true_difference_std": round(float(spread), 4),
    }


def _share(right: np.ndarray[Any, Any], owners: np.ndarray[Any, Any]) -> dict[str, Any]:
    found = bootstrap_paired(right.astype(float), np.zeros(len(right)), owners).to_dict()
    return {"n": len(right), "agree": [round(float(found[k]), 3) for k in ("value", "low", "high")]}


def _p(clip: ClipRecord, dimension: str) -> float:
    assert clip.scores is not None
    return float(getattr(clip.scores, dimension))


def most(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the `CAP` pairs of every condition with the widest gap."""
    groups: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda p: (-p.gap, p.chosen, p.rejected)):
        groups.setdefault(pair.condition, []).append(pair)
    return [pair for group in groups.values() for pair in group[:CAP]]


def without_conflict(data: Data, dimension: str) -> list[Pair]:
    """Return the dataset's pairs whose chosen side loses no other dimension by the answers."""

    def loses(pair: Pair, other: str) -> bool:
        sides = [_p(data.clips[clip], other) >= 0.5 for clip in (pair.chosen, pair.rejected)]
        return sides == [False, True]

    others = [d for d in DIMENSIONS if d != dimension]
    return [p for p in data.built[dimension] if not any(loses(p, other) for other in others)]


def choose(data: Data, dimension: str, variant: str, seed: int) -> list[Pair]:
    """Return the pairs of a variant (see `label_study`)."""
    built = data.built[dimension]
    if variant == "half":
        kept = np.random.default_rng(seed).permutation(len(built))[: len(built) // 2]
        return [built[i] for i in kept]
    if variant == "clearest half":
        return sorted(built, key=lambda p: -p.gap)[: len(built) // 2]
    if variant == "widest":
        return most(data.meetings(lambda clip: _p(clip, dimension)))
    if variant == "no conflict":
        return without_conflict(data, dimension)
    if variant == "truth":
        return [
            p if data.truly(p, dimension) >= 0 else Pair(p.condition, p.rejected, p.chosen, p.gap)
            for p in built
        ]
    if variant == "true widest":
        return most(data.meetings(lambda clip: data.truth[clip.clip_id][dimension]))
    assert variant in ("built", "sft"), variant
    return built


def write_dataset(folder: Path, data: Data, dimension: str, pairs: Sequence[Pair]) -> None:
    """Write a dataset of the demo's clips with these pairs of one dimension, A chosen."""
    (folder / "data/pairs").mkdir(parents=True)
    (folder / "data/clips").symlink_to((data.demo / "nsq/data/clips").resolve())
    columns: dict[str, Any] = {
        "pair_id": [f"{p.chosen}:{p.rejected}" for p in pairs],
        "clip_a": [p.chosen for p in pairs],
        "clip_b": [p.rejected for p in pairs],
        f"label_{dimension}": [LABELS.index("A")] * len(pairs),
        f"margin_{dimension}": [abs(data.wins(p, dimension)) for p in pairs],
        f"in_{dimension}": [True] * len(pairs),
    }
    table = pa.table(columns).replace_schema_metadata({"ft2_schema": str(SCHEMA_VERSION)})
    path = folder / "data/pairs/train-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
