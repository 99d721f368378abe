"""The table of a comparison: scores, paired differences to the base and win rates of clips."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ft2.metrics import bootstrap_mean, bootstrap_paired

Rows = list[dict[str, Any]]
"""One object a clip: ``condition``, ``seed``, ``group`` (what resembles another) and scores."""

BASE: Final = "base"


def mean_gain(rows: Rows, base: Rows, columns: Sequence[str]) -> float:
    """Return the mean difference to the base, each column in units of the base's deviation."""
    by_clip = {(row["condition"], row["seed"]): row for row in base}
    gains = []
    for column in columns:
        pairs = [(row[column], by_clip[row["condition"], row["seed"]][column]) for row in rows]
        values = np.array([(a, b) for a, b in pairs if a is not None and b is not None], float)
        gains.append((values[:, 0] - values[:, 1]).mean() / max(values[:, 1].std(), 1e-9))
    return float(np.mean(gains))


def summarise(rows: Mapping[str, Rows], columns: Sequence[str], base: str = BASE) -> dict[str, Any]:
    """Return scores, paired differences to the base and win rates, with bootstrap intervals.

    Intervals are over groups (such as utterances), with all seeds of a group drawn together. A
    win is a clip that scores above the base's with the same condition and noise; ties are half.

    Args:
        rows: Clips by method, each with its ``run``.
        columns: Scores.
        base: The method that the others are compared with.
    """
    by_clip = {(r["run"], r["condition"], r["seed"]): r for r in rows[base]}
    found: dict[str, dict[str, Any]] = {"scores": {}, "difference_to_base": {}, "wins": {}}
    for name, own in rows.items():
        groups = [row["group"] for row in own]
        beside = [by_clip[row["run"], row["condition"], row["seed"]] for row in own]
        for column in columns:
            ours, theirs = ([_value(r, column) for r in part] for part in (own, beside))
            if not np.isfinite(ours).any():
                continue
            cells = {"scores": bootstrap_mean(ours, groups)}
            if name != base:
                cells["difference_to_base"] = bootstrap_paired(ours, theirs, groups)
                gap = np.array(ours) - np.array(theirs)
                won = np.where(np.isfinite(gap), (gap > 0) + 0.5 * (gap == 0), np.nan)
                cells["wins"] = bootstrap_mean(won.tolist(), groups)
            for part, estimate in cells.items():
                found[part].setdefault(name, {})[column] = estimate.to_dict()
    return found


def _value(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    return float("nan") if value is None else float(value)


def markdown(table: Mapping[str, Any], columns: Sequence[str], base: str = BASE) -> str:
    """Return the table for people: difference to the base with 95 % intervals, and win rates."""
    head = ["method", *columns, *(f"wins {column}" for column in columns)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    first = [_cell(table["scores"][base].get(c), signed=False) for c in columns]
    lines.append(f"| {base} (score) | {' | '.join([*first, *([''] * len(columns))])} |")
    for name, cells in table["difference_to_base"].items():
        shown = [_cell(cells.get(column)) for column in columns]
        shown += [_cell(table["wins"][name].get(column), signed=False) for column in columns]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    beside = "the base" if base == BASE else f"'{base}'"
    note = (
        f"\nDifference to {beside}, mean over {len(table['seeds'])} training seeds and "
        f"{table['conditions']} held-out conditions; 95 % bootstrap intervals over groups.\n"
    )
    return "\n".join(lines) + "\n" + note


def _cell(estimate: Mapping[str, Any] | None, signed: bool = True) -> str:
    if estimate is None:
        return ""
    value = f"{estimate['value']:+.3f}" if signed else f"{estimate['value']:.3f}"
    if estimate["low"] is None:
        return value
    return f"{value} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
