"""How often scores agree with people's choices between two clips; see `ft2.metrics.preference`."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ft2.critic.answers import Answer
from ft2.critic.importers import read_rows
from ft2.critic.merge import Merged, majority, merge
from ft2.critic.sync_row import sync_scores
from ft2.errors import UsageError
from ft2.metrics import pair_metrics, trivial_pair_metrics
from ft2.metrics.preference import SIGNS
from ft2.runs import Progress

Scored = Mapping[str, Mapping[str, float]]
"""Score per clip and dimension; higher is better."""

SCORE_ROW = 'a row is as {"clip": "a.mp4", "lip": 0.7}, or what `ft2 critic score -o` wrote'


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Return the scores of a JSONL: rows with ``clip`` and a number per dimension.

    Rows of `ft2 critic score` give their log-odds, which never saturate; rows with ``error`` are
    left out.

    Raises:
        UsageError: A row is not what it must be, or a clip has two different scores.
    """
    found: dict[str, dict[str, float]] = {}
    for number, row in read_rows(path):
        where = f"{path}: row {number}"
        if not isinstance(row, dict) or not isinstance(row.get("clip"), str):
            raise UsageError(
                f"{where}: a score row has a clip and a number per dimension", SCORE_ROW
            )
        if row.get("error"):
            continue
        given = row.get("log_odds", {k: v for k, v in row.items() if _is_number(v)})
        if not isinstance(given, dict) or not given or not all(map(_is_finite, given.values())):
            raise UsageError(f"{where}: no finite score in {json.dumps(row)}", SCORE_ROW)
        if found.setdefault(row["clip"], given) != given:
            raise UsageError(f"{where}: {row['clip']} has two different scores")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def evaluate_pairs(
    answers: Sequence[Answer], scores: Scored, *, num_resamples: int = 1000
) -> dict[str, Any]:
    """Return per dimension all named metrics beside trivial judges, ready for JSON.

    The label of a pair is what most raters said; pairs on which they are evenly split are left out
    and counted, as are pairs without scores. Intervals are bootstraps over prompts.

    Args:
        answers: Comparisons; answers about single clips are left out.
        scores: Score per clip and dimension.
        num_resamples: Bootstrap samples.

    Raises:
        UsageError: No comparison has both scores.
    """
    pairs = [answer for answer in answers if answer.is_pair]
    if not pairs:
        raise UsageError("no answer compares two clips", "import pair ratings: ft2 critic import")
    merged = merge(pairs)
    named = sorted({dimension for _, dimension in merged.votes})
    found = {d: _dimension(d, merged, scores, num_resamples) for d in named}
    if not any(part["n"] for part in found.values()):
        asked, given = ", ".join(named), ", ".join(sorted({d for s in scores.values() for d in s}))
        raise UsageError(
            f"no pair has scores of both clips: people were asked about {asked}, "
            f"{len(scores)} clips have scores of {given or 'nothing'}",
            "name clips and dimensions alike in answers and scores",
        )
    return {
        "answers": dict(merged.counts),
        "clips_scored": len(scores),
        "dimensions": found,
    }


def add_sync_measure(
    result: dict[str, Any], answers: Sequence[Answer], media: Path, progress: Progress | None = None
) -> None:
    """Put the lip-sync measure's figures on lip pairs into ``dimensions.lip.sync_measure``.

    Args:
        result: What `evaluate_pairs` returned; without lip pairs nothing is added.
        answers: The same answers.
        media: The folder that the clips' paths are relative to.
        progress: Told how far it is.

    Raises:
        UsageError: A clip is not there.
    """
    asked = [a for a in answers if a.is_pair and a.dimension == "lip"]
    names = sorted({name for a in asked for name in (a.clip, a.other or "")})
    absent = [name for name in names if not (media / name).is_file()]
    if absent:
        raise UsageError(
            f"{len(absent)} of {len(names)} clips are not there, the first is {media / absent[0]}",
            "say with --media which folder the clips' paths are relative to",
        )
    if not names or not result["dimensions"]["lip"]["n"]:
        return
    found = sync_scores([media / name for name in names], progress)
    scores = {
        name: {"lip": float(value)}
        for name, value in zip(names, found.values, strict=True)
        if math.isfinite(value)
    }
    own = _dimension("lip", merge(asked), scores, 1000)
    result["dimensions"]["lip"]["sync_measure"] = {**own, "unmeasured": found.reasons}


def _dimension(
    dimension: str, merged: Merged, scores: Scored, num_resamples: int
) -> dict[str, Any]:
    left = Counter[str]()
    rows: list[tuple[float, int, str, tuple[str, str]]] = []
    for (item, name), votes in sorted(merged.votes.items(), key=lambda entry: str(entry[0])):
        if name != dimension:
            continue
        label = majority(votes)
        a, b = (scores.get(clip or "", {}).get(dimension) for clip in item)
        if label is None or a is None or b is None:
            left["split_votes" if label is None else "without_scores"] += 1
            continue
        fact = merged.facts[item]
        side = 1 if fact.clip == item[0] else -1  # as the first rater saw them
        models = (fact.model, fact.other_model)
        rows.append((side * (a - b), side * SIGNS[label], fact.prompt or str(item), models))
    if not rows:
        return {"n": 0, "left_out": dict(left)}
    d, y = [row[0] for row in rows], [row[1] for row in rows]
    prompts, made_by = [row[2] for row in rows], [row[3] for row in rows]
    found = pair_metrics(d, y, list(prompts), num_resamples=num_resamples)
    return {
        **found,
        "left_out": dict(left),
        "prompts": len(set(prompts)),
        "trivial": trivial_pair_metrics(y),
        "raters": _ceiling(dimension, merged),
        "generators": _generators(np.array(d), np.array(y), made_by),
    }


def _ceiling(dimension: str, merged: Merged) -> dict[str, Any]:
    """Return how often a single answer equals that of the other raters' majority."""
    right = total = 0
    for (_, name), votes in merged.votes.items():
        if name != dimension or votes.total() < 2:
            continue
        for answer, count in votes.items():
            others = majority(votes - Counter({answer: 1}))
            if others is not None:
                total += count
                right += count * (others == answer)
    return {"answers": total, "agree_with_the_others": right / total if total else None}


def _generators(
    d: "np.ndarray[Any, Any]", y: "np.ndarray[Any, Any]", models: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return per generator how often people and the scores prefer it, half for a tie."""
    people: dict[str, list[float]] = defaultdict(list)
    judge: dict[str, list[float]] = defaultdict(list)
    for gap, label, (first, second) in zip(np.sign(d), y, models, strict=True):
        if not first or not second or first == second:
            continue
        for name, side in ((first, 1), (second, -1)):
            people[name].append((1 + side * label) / 2)
            judge[name].append((1 + side * gap) / 2)
    return {
        name: {
            "n": len(people[name]),
            "people": float(np.mean(people[name])),
            "scores": float(np.mean(judge[name])),
            "bias": float(np.mean(judge[name]) - np.mean(people[name])),
        }
        for name in sorted(people)
    }


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the figures as text: a line per dimension and metric."""
    lines = []
    for dimension, found in result["dimensions"].items():
        if not found["n"]:
            lines.append(f"{dimension}: no pair has both scores {found['left_out']}")
            continue
        human = ", ".join(f"{name} {count}" for name, count in found["human"].items())
        lines.append(f"{dimension}: {found['n']} pairs ({human}), {found['prompts']} prompts")
        lines += [f"  {name:38} {_text(found[key])}" for key, name in METRICS.items()]
        trivial = found["trivial"]
        lines.append(
            f"  {'trivial: random scores':38} strict {_number(trivial['random']['strict'])}, "
            f"three-way oracle {trivial['random']['three_way_oracle']:.3f}"
        )
        lines.append(f"  {'trivial: always tie':38} {trivial['always_tie']['three_way']:.3f}")
        lines += _sync_lines(found.get("sync_measure"))
    return lines


def _sync_lines(found: Mapping[str, Any] | None) -> list[str]:
    """Return the lip-sync measure's figures, if it was asked."""
    if found is None:
        return []
    lines = [f"  lip-sync measure without SyncNet, {found['n']} pairs"]
    if found["n"]:
        lines += [f"    {name:36} {_text(found[key])}" for key, name in METRICS.items()]
    lines += [f"    {count} clips left out: {why}" for why, count in found["unmeasured"].items()]
    return lines


METRICS = {
    "strict": "strict (predicted ties wrong)",
    "half": "half (predicted ties count 1/2)",
    "decided": "decided (predicted ties left out)",
    "three_way_held_out": "three-way, eps from other prompts",
    "three_way_oracle": "three-way, oracle eps (optimistic)",
}
"""Metrics in the order of tables, and what they are."""


def _text(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "not defined: people decided no pair"
    text = f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    coverage = value.get("coverage")
    return text if coverage is None else f"{text} coverage {coverage:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
