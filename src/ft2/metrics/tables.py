"""The figures of an evaluation as rows of text: for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ft2.metrics.catalogue import COLUMNS, FACTS, NINE
from ft2.metrics.papers import TABLES, PaperTable
from ft2.report.charts import number

GAP = "\u2013"
"""What stands where there is no number; never a zero."""

Rows = list[list[str]]


def estimate(cell: Mapping[str, Any] | None, signed: bool = False) -> str:
    """Return ``0.31 [0.25, 0.37]``, or a dash; one condition alone has no interval."""
    if not cell or cell.get("value") is None:
        return GAP
    largest = max(abs(cell[key] or 0.0) for key in ("value", "low", "high"))
    digits = 1 if largest >= 100 else 2 if largest >= 1 else 3
    text = number(cell["value"], digits)
    if signed and cell["value"] > 0:
        text = f"+{text}"
    if cell.get("low") is None or cell.get("num_groups", 2) < 2:
        return text
    return f"{text} [{number(cell['low'], digits)}, {number(cell['high'], digits)}]"


def head(result: Mapping[str, Any]) -> list[str]:
    """Return the heading of `rows`."""
    names = ["metric", "unit", "better", result["run"]["label"], "n"]
    if result["against"] is None:
        return names
    return [*names, result["against"]["label"], "n", "difference", "pairs", "win rate"]


def rows(result: Mapping[str, Any]) -> Rows:
    """Return a row of text a column of the catalogue that was asked for; gaps are dashes."""
    found = []
    for name in result["facts"]:
        if FACTS[name].of_sets:
            found += _distance_rows(name, result)
            continue
        for column in FACTS[name].columns:
            cells = [_label(column.name), column.unit, _direction(column.name)]
            cells += _mean(result["run"], column.name)
            if result["against"] is not None:
                cells += _mean(result["against"], column.name) + _paired(result, column.name)
            found.append(cells)
    return found


def _distance_rows(name: str, result: Mapping[str, Any]) -> Rows:
    column = FACTS[name].columns[0]
    found = result["distances"].get(name, {})
    cells = [_label(column.name), f"to {_target(found)}", _direction(column.name)]
    for label in ("run", "against"):
        cell = found.get(label)
        if label == "against" and result["against"] is None:
            continue
        cells += [GAP, ""] if cell is None else [number(cell["value"], 2), str(cell["n"][0])]
    return [cells + ([] if result["against"] is None else ["", "", ""])]


def _target(found: Mapping[str, Any]) -> str:
    return next((str(cell["to"]) for cell in found.values()), "a reference")


def _label(column: str) -> str:
    return COLUMNS[column].label


def _direction(column: str) -> str:
    return {"higher": "\u2191", "lower": "\u2193", "neither": ""}[COLUMNS[column].better]


def _mean(found: Mapping[str, Any], column: str) -> list[str]:
    cell = found["means"].get(column)
    return [estimate(cell), str(cell["n"]) if cell else ""]


def _paired(result: Mapping[str, Any], column: str) -> list[str]:
    cell = result["paired"].get(column)
    if cell is None:
        return [GAP, "", GAP]
    wins = cell.get("win_rate")
    return [
        estimate(cell["difference"], signed=True), str(cell["difference"]["n"]),
        estimate(wins) if wins else "",
    ]  # fmt: skip


def missing(result: Mapping[str, Any]) -> Rows:
    """Return why each gap is one: metrics that could not run, then clips."""
    found = [[name, reason, "all clips"] for name, reason in result["gaps"].items()]
    for label in ("run", "against"):
        part = result[label]
        for reason, count in (part["counts"]["missing"] if part else {}).items():
            name, why = reason.split(": ", 1)
            found.append([name, why, f"{count} of {part['counts']['clips']} in {part['label']}"])
    return found


def own_columns(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured values of FantasyTalking's nine, for a row beside the papers'."""
    found = {}
    for name in NINE:
        cell = result["run"]["means"].get(name) or result["distances"].get(name, {}).get("run")
        if cell and cell.get("value") is not None:
            found[name] = float(cell["value"])
    return found


def paper(table: PaperTable, result: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Return heading and rows of a paper's table, with this run as its last row."""
    own = own_columns(result)
    lines = {**table.rows, f"this run: {result['run']['label']}": own}
    heading = ["method", *(f"{_label(c)} {_direction(c)}" for c in table.columns)]
    body = [
        [name, *(_plain(values.get(column)) for column in table.columns)]
        for name, values in lines.items()
    ]
    return heading, body


def _plain(value: float | None) -> str:
    return GAP if value is None else f"{value:.4g}"


def markdown(result: Mapping[str, Any]) -> str:
    """Return the whole evaluation as Markdown."""
    parts = [f"# {title(result)}", lead(result), _table(head(result), rows(result))]
    if result["remarks"]:
        parts += ["## Remarks", "\n".join(f"- {remark}" for remark in result["remarks"])]
    gaps = missing(result)
    if gaps:
        parts += ["## Not measured", _table(["metric", "why", "where"], gaps)]
    failed = failures(result)
    if failed:
        parts += ["## Failed clips", _table(["clip", "set", "why"], failed)]
    parts += ["## What papers report"]
    for table in TABLES:
        parts += [f"**{table.source}: {table.title}** ({table.confidence}). {table.note}".strip()]
        parts += [_table(*paper(table, result))]
    return "\n\n".join(parts) + "\n"


def title(result: Mapping[str, Any]) -> str:
    """Return the title of an evaluation."""
    against = result["against"]
    return f"{result['run']['label']}" + (f" against {against['label']}" if against else "")


def lead(result: Mapping[str, Any]) -> str:
    """Return how many clips there are and what the intervals are."""
    texts = []
    for label in ("run", "against"):
        if part := result[label]:
            count = part["counts"]
            texts.append(f"{part['label']}: {count['measured']} of {count['clips']} clips "
                         f"measured, {count['conditions']} conditions")  # fmt: skip
    if result["against"] is not None:
        texts.append(f"{result['pairs']} pairs; a difference is {result['run']['label']} less "
                     f"{result['against']['label']}, clip by clip")  # fmt: skip
    return "; ".join(texts) + ". Intervals are 95 % bootstraps over conditions."


def failures(result: Mapping[str, Any]) -> Rows:
    """Return a row for each clip that could not be made or read."""
    return [
        [name, part["label"], str(why)]
        for part in (result["run"], result["against"]) if part
        for name, why in part["counts"]["failed"].items()
    ]  # fmt: skip


def _table(heading: Sequence[str], body: Rows) -> str:
    lines = [heading, ["---"] * len(heading), *body]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
