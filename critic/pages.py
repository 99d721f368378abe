"""Plain pages of figures: tables and small plots in one HTML file, without scripts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from ft2.report.charts import nice_ticks, number
from ft2.runs import write_atomic

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 420, 260, 48, 36, 12, 12
COLOURS = ("#0b6e99", "#b4510b", "#3f7d20", "#7a3e9d", "#555555", "#a01b3b", "#1b7a6f", "#8a6d00")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Table:
    """A table; a cell that begins with ``!`` is shown as a failure."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[str] = field(default_factory=tuple)
    """SVG texts from `plot`."""


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write one self-contained HTML file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("page.html.j2")
    write_atomic(path, page.render(title=title, lead=lead, sections=sections))


def plot(
    curves: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    mark_x: float | None = None,
    key_at: tuple[float, float] = (LEFT + 8, TOP + 12),
) -> str:
    """Return an SVG of curves with their points.

    Args:
        curves: Points (x, y) by name.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        x_range: Ends of the x axis; None fits them.
        y_range: Ends of the y axis; None fits them.
        diagonal: Also draw y = x, dashed.
        mark_x: Where to draw a dashed vertical.
        key_at: Place of the first name in the key, in the picture's units.
    """
    points = [p for curve in curves.values() for p in curve if all(map(math.isfinite, p))]
    x_ticks = _ticks([p[0] for p in points], x_range)
    y_ticks = _ticks([p[1] for p in points], y_range)

    def x(value: float) -> float:
        share = (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    low, high = HEIGHT - BOTTOM, TOP
    parts = [f'<path class="grid" d="M{x(t):.1f} {low}V{high}"/>' for t in x_ticks]
    parts += [f'<path class="grid" d="M{LEFT} {y(t):.1f}H{WIDTH - RIGHT}"/>' for t in y_ticks]
    parts += [_text(x(t), low + 14, _short(t), "middle") for t in x_ticks]
    parts += [_text(LEFT - 6, y(t) + 4, _short(t), "end") for t in y_ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "middle"))
    turn = f'transform="rotate(-90 12 {(low + high) / 2})"'
    parts.append(_text(12, (low + high) / 2, y_label, "middle", turn))
    if diagonal:
        ends = (max(x_ticks[0], y_ticks[0]), min(x_ticks[-1], y_ticks[-1]))
        line = f"M{x(ends[0]):.1f} {y(ends[0]):.1f}L{x(ends[1]):.1f} {y(ends[1]):.1f}"
        parts.append(f'<path class="ref" d="{line}"/>')
    if mark_x is not None:
        parts.append(f'<path class="ref" d="M{x(mark_x):.1f} {low}V{high}"/>')
    for index, (name, curve) in enumerate(curves.items()):
        shown = [(x(a), y(b)) for a, b in curve if math.isfinite(a) and math.isfinite(b)]
        place = (key_at[0], key_at[1] + 14 * index)
        parts.append(_curve(name, shown, COLOURS[index % len(COLOURS)], place))
    text = escape(f"{y_label} against {x_label}: {', '.join(curves)}")
    body = f"<title>{text}</title>{''.join(parts)}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{body}</svg>'


def _ticks(values: Sequence[float], ends: tuple[float, float] | None) -> list[float]:
    low, high = ends or (min(values, default=0.0), max(values, default=1.0))
    return nice_ticks(low, high)


def _curve(name: str, shown: Points, colour: str, place: tuple[float, float]) -> str:
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in shown)
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in shown)
    label = f'<text class="key" x="{place[0]}" y="{place[1]}">{escape(name)}</text>'
    line = f'<polyline fill="none" points="{line}"/>'
    return f'<g style="color:{colour}">{line}{dots}{label}</g>'


def _text(x: float, y: float, text: str, anchor: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value:g}".replace("-", "\u2212")


def estimate(value: Mapping[str, float | None] | None) -> str:
    """Return an estimate of `ft2.metrics` as ``0.83 [0.79, 0.87]``."""
    if not value or value.get("value") is None:
        return "\u2013"
    text = number(value["value"])
    low, high = value.get("low"), value.get("high")
    return text if low is None or high is None else f"{text} [{number(low)}, {number(high)}]"
