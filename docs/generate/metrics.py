"""The page of all metrics: columns, units, directions, papers, code, licences, weights files."""

from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Column, Facts
from ft2.metrics.published import Weights

LEAD = """# Metrics

Everything that [`ft2 evaluate`](../how-to/evaluate.md) can measure. A metric is asked for as
`metrics=[NAME,...]`; without that all run, with a gap for each that lacks a package or weights.

A SHA-256 stands here only where its publisher states it (the first eight digits in torch's file
names count), or independent public copies state the same. A file that bears a published name and
has another SHA-256 is refused with both sums; a file of another name is used, and the table says
that it is none of these."""

DIRECTION = {"higher": "higher is better", "lower": "lower is better", "neither": "no direction"}


def page() -> str:
    """Return the page as Markdown, a heading a metric."""
    return "\n\n".join([LEAD, *map(_section, FACTS.values())]) + "\n"


def _section(facts: Facts) -> str:
    lines = ["| column | what | unit | |", "|---|---|---|---|", *map(_column, facts.columns)]
    told = [f"- Reference: {facts.paper}", f"- Implementation: {facts.implementation}"]
    told += [f"- Where it differs: {facts.departs}"] if facts.departs else []
    if facts.packages:
        brings = " and ".join(f"`{package}`" for package in facts.packages)
        told.append(f"- Packages: {brings} (extra `{facts.extra}`)")
    told += [f"- **Terms of {term}**" for term in facts.terms]
    parts = [f"## {facts.name}", "\n".join(lines), "\n".join(told)]
    return "\n\n".join([*parts, *map(_weights, facts.weights)])


def _column(column: Column) -> str:
    return f"| `{column.name}` | {column.label} | {column.unit} | {DIRECTION[column.better]} |"


def _weights(weights: Weights) -> str:
    folder = f" (a folder, or a hub id such as `{weights.hub_id}`)" if weights.hub_id else ""
    head = f"`weights.{weights.key}`{folder}, from {weights.source}:"
    rows = [
        f"| `{f.name}` | {f'`{f.sha256}`' if f.sha256 else 'none published'} | {f.stated_by} |"
        for f in weights.files
    ]
    return "\n".join([head, "", "| file | SHA-256 | stated by |", "|---|---|---|", *rows])
