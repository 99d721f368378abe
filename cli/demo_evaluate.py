"""The demo's last measurement: base and policies on unseen faces and speech, by ground truth.

The judges (`ft2.puppet.judges`) know the face and what the mouth should do. They also rated the
generated clips among the critic's ratings (`ft2.cli.demo_ratings`); the landmark judge did not.
Intervals are bootstraps over utterances.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.media import read_video
from ft2.metrics import bootstrap_mean, bootstrap_paired
from ft2.pairs import DIMENSIONS, Condition
from ft2.puppet import judges
from ft2.puppet.truth import Truth, truth_of
from ft2.runs import Progress, read_json, write_json

if TYPE_CHECKING:
    from ft2.config import ClipFormat

BASE = "base"
POLICY = "policy"
LANDMARKS = "lip by landmarks"
COLUMNS = (*DIMENSIONS, LANDMARKS)

Rows = list[dict[str, Any]]


def merge_name(weight: float) -> str:
    """Return the name of a merge of all experts at one strength, such as `merge 2/3`."""
    thirds = round(3 * weight)
    if math.isclose(3 * weight, thirds, abs_tol=1e-6) and thirds % 3:
        return f"merge {thirds}/3"
    return f"merge {weight:g}"


def folder_name(name: str) -> str:
    """Return the name of a policy as a file name."""
    return name.replace(" ", "-").replace("/", "-")


def judge_clip(video: Path, truth: Truth) -> dict[str, float | None]:
    """Return the scores of a clip by column; None where the landmark judge cannot tell."""
    decoded = read_video(video)
    found = judges.judge(decoded.frames, truth.probe, truth.driving, decoded.fps)
    scores: dict[str, float | None] = {d: getattr(found, d) for d in DIMENSIONS}
    lip = judges.landmark_lip(decoded.frames, truth.driving)
    scores[LANDMARKS] = lip if math.isfinite(lip) else None
    return scores


def score_policy(
    name: str,
    conditions: Sequence[Condition],
    clips: Callable[[], Mapping[tuple[str, int], Path]],
    output: Path,
    clip: "ClipFormat",
    progress: Progress,
) -> Rows:
    """Return one row of scores a clip; kept in `output` and read back when it is there."""
    record = output / f"{folder_name(name)}.json"
    if record.exists():
        rows: Rows = read_json(record)
        return rows
    by_id = {c.condition_id: c for c in conditions}
    rows = []
    made = clips()
    for done, ((condition_id, seed), video) in enumerate(made.items(), start=1):
        condition = by_id[condition_id]
        scores = judge_clip(video, truth_of(condition, clip))
        utterance = condition.audio_id.split("@")[0]
        rows.append({"condition": condition_id, "seed": seed, "utterance": utterance, **scores})
        progress.update(f"judge {name}", done, len(made))
    write_json(record, rows)
    return rows


def summarise(rows: Mapping[str, Rows]) -> dict[str, Any]:
    """Return mean scores of each policy and their paired differences to the base, with 95 %.

    Returns:
        ``{"scores": {policy: {column: estimate}}, "difference_to_base": {...}}``; a column that
        was not measured for a policy is left out.
    """
    base = {(r["condition"], r["seed"]): r for r in rows[BASE]}
    scores: dict[str, Any] = {}
    deltas: dict[str, Any] = {}
    for name, found in rows.items():
        utterances = [r["utterance"] for r in found]
        scores[name], deltas[name] = {}, {}
        for column in COLUMNS:
            values = [_number(r[column]) for r in found]
            reference = [_number(base[r["condition"], r["seed"]][column]) for r in found]
            if not any(map(math.isfinite, values)):
                continue
            scores[name][column] = bootstrap_mean(values, utterances).to_dict()
            if name != BASE and any(math.isfinite(b) for b in reference):
                paired = bootstrap_paired(values, reference, utterances)
                deltas[name][column] = paired.to_dict()
    deltas.pop(BASE)
    return {"scores": scores, "difference_to_base": deltas}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
