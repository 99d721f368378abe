"""The page of an evaluation: tables, charts, clips side by side, and what papers report."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ft2.files import write_atomic
from ft2.metrics import tables
from ft2.metrics.catalogue import COLUMNS
from ft2.metrics.papers import TABLES
from ft2.report import charts
from ft2.report.data import Estimate, ScoreRow
from ft2.report.plain import page

_STYLE = """<style>
td, th { text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
.clear { font-weight: 650; } .gap { color: var(--muted); }
.bad { color: #b5460f; overflow-wrap: anywhere; }
.pairs { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.pair { display: flex; gap: .5rem; } .pair figure { flex: 1; min-width: 0; }
video { width: 100%; background: #000; } figcaption { font-size: .8rem; color: var(--muted);
  overflow-wrap: anywhere; } details { margin-top: 1rem; } summary { cursor: pointer; }
ul.note { padding-left: 1.1rem; } li { margin: .2rem 0; }
</style>"""

_PAIRED = 7
"""Where the columns of a table that are about pairs begin."""
_PARTS: tuple[Sequence[int], ...] = ((0, 2, 3, 4, 5, 6), (0, 1, 7, 8, 9))
"""Columns of the two tables in which a terminal shows a comparison."""
_TEXT = 3
"""Columns of a table that are words and not numbers."""


def write_page(
    path: Path,
    result: Mapping[str, Any],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    shown: Sequence[Mapping[str, str]],
) -> None:
    """Write the HTML page.

    Args:
        path: The file; clips are referred to relative to it.
        result: What `ft2.cli.evaluate_run` returns.
        rows: Measured clips of each set.
        shown: Per condition its ``name`` and the relative paths of its clips by set.
    """
    title = tables.title(result)
    parts = [_STYLE, f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(tables.lead(result))}']
    parts += ["</p>", _table(tables.head(result), tables.rows(result), _TEXT)]
    parts += [_remarks(result["remarks"]), *_charts(result)]
    if shown:
        parts += ["<h2>Clips</h2>", '<p class="note">Chosen evenly, not by score.</p>']
        parts += ['<div class="pairs">', *(_pair(cells, result) for cells in shown), "</div>"]
    parts += _missing(result)
    parts += _papers(result)
    parts += _every_clip(result, rows)
    write_atomic(path, page(title, parts))


def _table(heading: Iterable[str], body: tables.Rows, text: int, failed: str = "") -> str:
    kinds = ["" if place < text else ' class="n"' for place, _ in enumerate(heading)]
    head = "".join(f"<th{kind}>{escape(c)}</th>" for kind, c in zip(kinds, heading, strict=True))
    lines = []
    for row in body:
        cells = "".join(
            f"<td{_class(cell, i, text, failed)}>{escape(cell)}</td>" for i, cell in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _class(cell: str, place: int, text: int, failed: str) -> str:
    if failed and cell.startswith(failed):
        return ' class="bad"'
    found = (("n", place >= text), ("gap", cell == tables.GAP),
             ("clear", place == _PAIRED and _is_clear(cell)))  # fmt: skip
    kinds = [name for name, holds in found if holds]
    return f' class="{" ".join(kinds)}"' if kinds else ""


def _is_clear(cell: str) -> bool:
    """Return whether a signed difference's interval leaves out zero."""
    ends = re.fullmatch(r"[+\u2212]\S+ \[(\S+), (\S+)\]", cell)
    if not ends:
        return False
    low, high = (float(end.replace("\u2212", "-")) for end in ends.groups())
    return low > 0 or high < 0


def _remarks(remarks: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return f'<ul class="note">{items}</ul>' if items else ""


def _charts(result: Mapping[str, Any]) -> list[str]:
    """Return a chart of both means for each column that both sets have, the other set first."""
    against = result["against"]
    if against is None:
        return []
    drawn = []
    for column, cell in result["run"]["means"].items():
        if column not in against["means"]:
            continue
        parts = ((against, against["means"][column]), (result["run"], cell))
        lines = [ScoreRow(p["label"][:14], {column: _estimate(c)}) for p, c in parts]
        found = COLUMNS[column]
        words = {"higher": "higher is better", "lower": "lower is better", "neither": ""}
        note = ", ".join(filter(None, [found.unit, words[found.better]]))
        chart = charts.dots(lines, column, f"{found.label} of both sets")
        drawn.append(f"<figure><b>{escape(found.label)}</b>"
                     f'<div class="note">{escape(note)}</div>{chart}</figure>')  # fmt: skip
    return ["<h2>Both sets</h2>", '<div class="charts">', *drawn, "</div>"] if drawn else []


def _estimate(cell: Mapping[str, Any]) -> Estimate:
    return Estimate(cell["value"], cell["low"], cell["high"], cell["n"])


def _pair(cells: Mapping[str, str], result: Mapping[str, Any]) -> str:
    figures = []
    for label in ("against", "run"):
        if label in cells:
            caption = escape(f"{result[label]['label']}: {cells['name']}")
            figures.append(
                f'<figure><video src="{escape(cells[label])}" controls loop playsinline '
                f'preload="auto"></video><figcaption>{caption}</figcaption></figure>'
            )
    return f'<div class="pair">{"".join(figures)}</div>'


def _missing(result: Mapping[str, Any]) -> list[str]:
    parts = []
    if failed := tables.failures(result):
        parts += ["<h2>Failed clips</h2>", _table(["clip", "set", "why"], failed, _TEXT)]
    if gaps := tables.missing(result):
        parts += ["<h2>Not measured</h2>", _table(["metric", "why", "where"], gaps, _TEXT)]
    return parts


def _papers(result: Mapping[str, Any]) -> list[str]:
    parts = ["<h2>What papers report</h2>",
             '<p class="note">Other clips, other people, other sizes: orders of magnitude, not a '
             "ranking. The last row is this run; a dash was not measured.</p>"]  # fmt: skip
    for table in TABLES:
        heading, body = tables.paper(table, result)
        note = f"{table.source}: {table.title} ({table.confidence}). {table.note}"
        parts += [f"<details><summary>{escape(note)}</summary>{_table(heading, body, 1)}</details>"]
    return parts


def _every_clip(
    result: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    parts = ["<h2>Every clip</h2>"]
    for label in ("run", "against"):
        found = rows.get(label)
        if not found:
            continue
        names = [c for c in COLUMNS if any((row.get("values") or {}).get(c) is not None
                                           for row in found)]  # fmt: skip
        body = [_clip_row(row, names) for row in found]
        heading = ["clip", "seconds", *(COLUMNS[name].label for name in names)]
        summary = escape(f"{result[label]['label']}: {len(found)} clips")
        table = _table(heading, body, 1, failed="failed:")
        parts.append(f"<details><summary>{summary}</summary>{table}</details>")
    return parts


def _clip_row(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    if row.get("error"):
        return [row["name"], f"failed: {row['error']}", *([""] * len(names))]
    values = row.get("values") or {}
    return [row["name"], charts.number(row["seconds"]), *(charts.number(values.get(n))
                                                          for n in names)]  # fmt: skip


def table_text(result: Mapping[str, Any]) -> str:
    """Return the table for a terminal, at most 100 columns wide, with remarks and gaps below.

    A comparison is two tables: the means of both sets, then the differences that there are.
    """
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table

    text = StringIO()
    console = Console(file=text, width=100, color_system=None)
    names, rows = tables.head(result), tables.rows(result)
    title: str | None = tables.title(result)
    for places in [range(len(names))] if result["against"] is None else _PARTS:
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for place in places:
            table.add_column(names[place], justify="left" if place < _TEXT else "right")
        for row in rows:
            if places[-1] < _PAIRED or row[_PAIRED] != tables.GAP:
                table.add_row(*(row[place] for place in places))
        console.print(table)
        title = None
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    lines += [tables.lead(result), *(f"- {remark}" for remark in result["remarks"])]
    lines += [f"failed: {name} ({where}): {why}" for name, where, why in tables.failures(result)]
    lines += [f"no {name}: {why} ({where})" for name, why, where in tables.missing(result)]
    return "\n".join(lines).strip("\n")
