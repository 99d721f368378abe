"""Small charts as inline SVG: every colour is a CSS variable, so that dark mode needs no redraw.

Each chart is drawn for a width of 340 units and scales with its column: three stand side by
side on a desk, one below the other on a phone, and the text stays readable on both.
"""

import itertools
import math
from collections.abc import Sequence
from html import escape

from ft2.report.data import Curve, Estimate, ScoreRow

WIDTH = 340

LETTER = 6
"""About how wide a letter or digit is."""


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers that cover [low, high]; works for an empty range.

    >>> nice_ticks(0.07, 0.93)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if not math.isfinite(low) or not math.isfinite(high):
        return [0.0, 1.0]
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def number(value: float | None, digits: int | None = None) -> str:
    """Return a number as people write it: a true minus sign, a dash for nothing.

    Without `digits` it has two decimals, and three where two would leave only zeros.
    """
    if value is None or not math.isfinite(value):
        return "\u2013"
    if digits is None:
        digits = 3 if 0 < abs(value) < 0.005 else 2
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\u2212")


def significant(value: float) -> float:
    """Return a number with three digits that count: small ones stay other than 0.

    >>> significant(0.0000123456), significant(123456.0)
    (1.23e-05, 123000.0)
    """
    return float(f"{value:.3g}")


def dots(rows: Sequence[ScoreRow], column: str, description: str) -> str:
    """Return a dot-and-whisker chart of one column: a row per policy, the base as dashed line."""
    shown = [(row, row.values[column]) for row in rows if column in row.values]
    ends = [e for _, v in shown for e in (v.value, v.low, v.high) if e is not None]
    if not ends:
        return ""
    ticks = nice_ticks(min(ends), max(ends))
    left = max(104, 14 + LETTER * max(len(row.label) for row, _ in shown))
    right, top, pitch = 42, 10, 25
    bottom = top + pitch * len(shown)
    x = Scale(ticks[0], ticks[-1], left, WIDTH - right)
    labels = [tick_text(t, ticks) for t in ticks]
    wide = LETTER * max(map(len, labels)) + 6
    every = math.ceil(wide / (x(ticks[1]) - x(ticks[0])))  # the labels that find room
    parts = [
        _vertical(x(t), top, bottom, "" if place % every else label)
        for place, (t, label) in enumerate(zip(ticks, labels, strict=True))
    ]
    parts.append(f'<path class="ref" d="M{x(shown[0][1].value):.1f} {top}V{bottom}"/>')
    for index, (row, value) in enumerate(shown):
        y = top + pitch * (index + 0.5)
        parts.append(_whisker(row, value, x, y, left, column))
    return svg(bottom + 22, description, parts)


def _whisker(row: ScoreRow, value: Estimate, x: "Scale", y: float, left: int, column: str) -> str:
    css = "strong" if row.highlight else ""
    low, high = value.low, value.high
    line = ""
    if low is not None and high is not None:
        line = f'<path class="whisker" d="M{x(low):.1f} {y}H{x(high):.1f}"/>'
    interval = f" [{number(low)}, {number(high)}]" if low is not None else ""
    title = escape(f"{row.label}: {number(value.value)}{interval}")
    radius = 5 if row.highlight else 4
    return (
        f'<g class="d-{css_name(column)} {css}"><title>{title}</title>'
        f'<text class="name" x="{left - 10}" y="{y + 4}">{escape(row.label)}</text>{line}'
        f'<circle cx="{x(value.value):.1f}" cy="{y}" r="{radius}"/>'
        f'<text class="value" x="{WIDTH}" y="{y + 4}">{number(value.value)}</text></g>'
    )


def lines(
    curves: Sequence[Curve], column: str, description: str, *, reference: float | None = None,
    limits: tuple[float, float] | None = None, height: int = 132, named: bool = False,
) -> str:  # fmt: skip
    """Return a line chart of curves over training steps; `reference` is a dashed level.

    `limits` are shown at least; the axis grows with the data. `named` curves have their label and
    its hue instead of the column's.
    """
    values = [v for c in curves for v in c.values if math.isfinite(v)]
    steps = [s for c in curves for s in c.steps]
    if not values:
        return ""
    shown = [*values, *(limits or ()), *([] if reference is None else [reference])]
    low, high = min(shown), max(shown)
    ticks = nice_ticks(low, high, 3)
    left, right, top, bottom = 36, 44, 8, height - 22
    if named:
        right += LETTER * (1 + max(len(c.label) for c in curves))
    x = Scale(min(steps), max(max(steps), min(steps) + 1), left, WIDTH - right)
    y = Scale(ticks[0], ticks[-1], bottom, top)
    parts = [horizontal(y(t), left, WIDTH - right, tick_text(t, ticks)) for t in ticks]
    for step in (min(steps), max(steps)):
        parts.append(f'<text class="tick mid" x="{x(step):.0f}" y="{height - 6}">{step:g}</text>')
    middle = (left + WIDTH - right) / 2
    parts.append(f'<text class="tick mid" x="{middle}" y="{height - 6}">step</text>')
    if reference is not None:
        parts.append(f'<path class="ref" d="M{left} {y(reference):.1f}H{WIDTH - right}"/>')
    ends = _spread([y(c.values[-1]) for c in curves], 13, top, bottom)
    for curve, label_y in zip(curves, ends, strict=True):
        css, name = (curve.label, f"{curve.label} ") if named else (column, "")
        parts.append(_line(curve, x, y, css, label_y, WIDTH - right, name))
    return svg(height, description, parts)


def _line(
    curve: Curve, x: "Scale", y: "Scale", column: str, label_y: float, right: float, name: str
) -> str:
    points = " ".join(
        f"{x(s):.1f},{y(v):.1f}"
        for s, v in zip(curve.steps, curve.values, strict=True)
        if math.isfinite(v)
    )
    css = "dashed" if curve.dashed else ""
    end = curve.values[-1]
    return (
        f'<g class="d-{css_name(column)} {css}"><title>{escape(curve.label)}</title>'
        f'<polyline class="curve" points="{points}"/>'
        f'<text class="end" x="{right + 5}" y="{label_y + 4:.1f}">'
        f"{escape(name)}{number(end)}</text></g>"
    )


class Scale:
    """A linear map from data to drawing units."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.factor = (end - start) / (high - low if high != low else 1.0)

    def __call__(self, value: float) -> float:
        """Return where a value is drawn."""
        return self.start + (value - self.low) * self.factor


def _spread(positions: list[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move labels apart by at least `gap`, keeping their order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    for previous, current in itertools.pairwise(order):
        placed[current] = max(placed[current], placed[previous] + gap)
    overshoot = max((placed[i] for i in order), default=0) - bottom
    if overshoot > 0:
        placed = [max(top, p - overshoot) for p in placed]
    return placed


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """Return a tick's label, with as many digits as the ticks need."""
    step = ticks[1] - ticks[0]
    digits = max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
    if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return number(value, digits)


def _vertical(x: float, top: float, bottom: float, label: str) -> str:
    return (
        f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>'
        f'<text class="tick mid" x="{x:.1f}" y="{bottom + 15}">{label}</text>'
    )


def horizontal(y: float, left: float, right: float, label: str) -> str:
    """Return a grid line with its label on the left."""
    return (
        f'<path class="grid" d="M{left} {y:.1f}H{right}"/>'
        f'<text class="tick far" x="{left - 6}" y="{y + 4:.1f}">{label}</text>'
    )


def css_name(column: str) -> str:
    """Return a name as a part of a CSS class."""
    return "".join(c if c.isalnum() else "-" for c in column)


def svg(height: float, description: str, parts: Sequence[str]) -> str:
    """Return a whole chart of `WIDTH`, described for those who cannot see it."""
    text = escape(description)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{text}">'
        + "".join(parts)
        + "</svg>"
    )
