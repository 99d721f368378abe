"""From measured clips to the figures of a table: means, paired differences, win rates, distances.

All intervals are 95 % bootstraps over conditions (a portrait with its speech): clips that differ
only in the seed are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ft2.errors import UsageError
from ft2.metrics.bootstrap import bootstrap_mean, bootstrap_paired
from ft2.metrics.catalogue import COLUMNS, FACTS
from ft2.metrics.clips import Entry, format_remarks
from ft2.metrics.config import EvaluateConfig
from ft2.metrics.evaluate import Bench, Features, Row
from ft2.metrics.frechet import frechet_distance, sample_remark

ENOUGH = {"fid": 10000, "fvd": 2048}
"""Samples (frames, windows of 16) with which papers report the two distances."""


def set_estimates(rows: Sequence[Row], settings: EvaluateConfig) -> dict[str, Any]:
    """Return the mean of each column with its interval, by column; without the undefined."""
    found = {}
    for column in COLUMNS:
        values = [_value(row, column) for row in rows]
        if np.isfinite(values).any():
            found[column] = bootstrap_mean(
                values, [row["condition"] for row in rows],
                num_resamples=settings.num_resamples, seed=settings.seed,
            ).to_dict()  # fmt: skip
    return found


def paired(
    run: Sequence[Row],
    other: Sequence[Row],
    matched: Sequence[tuple[Entry, Entry]],
    settings: EvaluateConfig,
) -> dict[str, Any]:
    """Return per column the mean difference run - other over pairs of clips, and the win rate.

    A win is a better value in the column's direction, a tie counts one half; columns without a
    direction have no win rate. Pairs in which a value is missing are left out.
    """
    by_name = {"run": {r["name"]: r for r in run}, "other": {r["name"]: r for r in other}}
    pairs = [(by_name["run"][a.name], by_name["other"][b.name]) for a, b in matched]
    groups = [a["condition"] for a, _ in pairs]
    draw = {"num_resamples": settings.num_resamples, "seed": settings.seed}
    found = {}
    for name, column in COLUMNS.items():
        first = np.array([_value(a, name) for a, _ in pairs])
        second = np.array([_value(b, name) for _, b in pairs])
        if not np.isfinite(first - second).any():
            continue
        cell: dict[str, Any] = {
            "difference": bootstrap_paired(first, second, groups, **draw).to_dict()
        }
        if column.better != "neither":
            sign = 1 if column.better == "higher" else -1
            wins = 0.5 + 0.5 * np.sign(sign * (first - second))
            cell["win_rate"] = bootstrap_mean(wins, groups, **draw).to_dict()
        found[name] = cell
    return found


def distances(sets: Mapping[str, Features]) -> tuple[dict[str, Any], list[str]]:
    """Return FID and FVD of each set to the last one, and remarks on their samples.

    Args:
        sets: Features by metric of each set; the last is what the others are compared with.
    """
    found: dict[str, Any] = {}
    remarks = []
    *compared, target = sets
    for name in (n for n, facts in FACTS.items() if facts.of_sets):
        for label in compared:
            one, other = sets[label].get(name), sets[target].get(name)
            if one is None or other is None:
                continue
            rows, dimensions = min(len(one), len(other)), one.shape[1]
            cell = {"to": target, "n": [len(one), len(other)], "dimensions": dimensions}
            try:
                cell["value"] = frechet_distance(one, other)
            except UsageError as error:
                remarks.append(f"{name.upper()}: {error.message}")
                continue
            found.setdefault(name, {})[label] = cell
            remark = sample_remark(name.upper(), rows, dimensions, ENOUGH[name])
            if remark and remark not in remarks:
                remarks.append(remark)
    return found, remarks


def counts(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how many clips, conditions and failures a set has, and why values are missing."""
    reasons = Counter(
        f"{name}: {reason}" for row in rows for name, reason in (row.get("gaps") or {}).items()
    )
    failed = {row["name"]: row["error"] for row in rows if row.get("error")}
    tracks = Counter(int(v) for row in rows if (v := _value(row, "face_tracks")) == v)
    return {
        "clips": len(rows),
        "measured": len(rows) - len(failed),
        "conditions": len({row["condition"] for row in rows}),
        "face_tracks": {str(k): tracks[k] for k in sorted(tracks)},
        "failed": failed,
        "missing": dict(reasons.most_common()),
    }


def remarks_of(
    run: Sequence[Row],
    other: Sequence[Row] | None,
    matched: Sequence[tuple[Entry, Entry]],
    bench: Bench,
    names: tuple[str, str] = ("run", "other"),
) -> list[str]:
    """Return what a reader must know before believing the table; sets are called by `names`."""
    found = [f"{which}: {r}" for which, rows in zip(names, (run, other or []), strict=True)
             for r in format_remarks(rows)]  # fmt: skip
    found += _pair_remarks(run, other or [], matched, names)
    found += bench.remarks
    if {"expression", "identity"} & set(bench.metrics):
        found.append("ES and IDC rise on a still video: read them beside SD or the head's spread.")
    for which, rows in zip(names, (run, other), strict=True):
        conditions = {row["condition"] for row in rows or [] if not row.get("error")}
        if rows is not None and len(conditions) == 1:
            found.append(f"{which}: one condition only, so the intervals have no width and say "
                         "nothing about other portraits or speech")  # fmt: skip
    return found


def _pair_remarks(
    run: Sequence[Row],
    other: Sequence[Row],
    matched: Sequence[tuple[Entry, Entry]],
    names: tuple[str, str],
) -> list[str]:
    if not matched:
        return []
    found = []
    by_name = {"run": {r["name"]: r for r in run}, "other": {r["name"]: r for r in other}}
    for which, clips in zip(names, (run, other), strict=True):
        if count := len(clips) - len(matched):
            found.append(
                f"{count} of {len(clips)} clips of {which} have no partner in the other set: "
                "they count in its means, not in the differences"
            )
    uneven = []
    for a, b in matched:
        one, two = by_name["run"][a.name].get("seconds"), by_name["other"][b.name].get("seconds")
        if one is not None and two is not None and abs(one - two) > 0.05:
            uneven.append(f"{a.name} {one:g} and {two:g} s")
    if uneven:
        shown = ", ".join(uneven[:3])
        found.append(f"{len(uneven)} of {len(matched)} pairs differ in length ({shown}): "
                     "spread and shares depend on length")  # fmt: skip
    return found


def _value(row: Row, column: str) -> float:
    value = (row.get("values") or {}).get(column)
    return float("nan") if value is None else float(value)
