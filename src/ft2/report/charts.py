"""Small charts as inline SVG: every colour is a CSS variable, so that dark mode needs no redraw.

Each chart is drawn for a width of 340 units and scales with its column: three stand side by
side on a desk, one below the other on a phone, and the text stays readable on both.
"""

import itertools
import math
from collections.abc import Sequence
from html import escape

from ft2.report.data import Curve, Estimate, GateMap, ScoreRow

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
    x = _scale(ticks[0], ticks[-1], left, WIDTH - right)
    labels = [_tick(t, ticks) for t in ticks]
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
    return _svg(bottom + 22, description, parts)


def _whisker(row: ScoreRow, value: Estimate, x: "_Scale", y: float, left: int, column: str) -> str:
    css = "strong" if row.highlight else ""
    low, high = value.low, value.high
    line = ""
    if low is not None and high is not None:
        line = f'<path class="whisker" d="M{x(low):.1f} {y}H{x(high):.1f}"/>'
    interval = f" [{number(low)}, {number(high)}]" if low is not None else ""
    title = escape(f"{row.label}: {number(value.value)}{interval}")
    radius = 5 if row.highlight else 4
    return (
        f'<g class="d-{_css_name(column)} {css}"><title>{title}</title>'
        f'<text class="name" x="{left - 10}" y="{y + 4}">{escape(row.label)}</text>{line}'
        f'<circle cx="{x(value.value):.1f}" cy="{y}" r="{radius}"/>'
        f'<text class="value" x="{WIDTH}" y="{y + 4}">{number(value.value)}</text></g>'
    )


def lines(
    curves: Sequence[Curve], column: str, description: str, *, reference: float | None = None,
    limits: tuple[float, float] | None = None, height: int = 132,
) -> str:  # fmt: skip
    """Return a line chart of curves over training steps; `reference` is a dashed level.

    `limits` are shown at least; the axis grows with the data.
    """
    values = [v for c in curves for v in c.values if math.isfinite(v)]
    steps = [s for c in curves for s in c.steps]
    if not values:
        return ""
    shown = [*values, *(limits or ()), *([] if reference is None else [reference])]
    low, high = min(shown), max(shown)
    ticks = nice_ticks(low, high, 3)
    left, right, top, bottom = 36, 44, 8, height - 22
    x = _scale(min(steps), max(max(steps), min(steps) + 1), left, WIDTH - right)
    y = _scale(ticks[0], ticks[-1], bottom, top)
    parts = [_horizontal(y(t), left, WIDTH - right, _tick(t, ticks)) for t in ticks]
    for step in (min(steps), max(steps)):
        parts.append(f'<text class="tick mid" x="{x(step):.0f}" y="{height - 6}">{step:g}</text>')
    middle = (left + WIDTH - right) / 2
    parts.append(f'<text class="tick mid" x="{middle}" y="{height - 6}">step</text>')
    if reference is not None:
        parts.append(f'<path class="ref" d="M{left} {y(reference):.1f}H{WIDTH - right}"/>')
    ends = _spread([y(c.values[-1]) for c in curves], 13, top, bottom)
    for curve, label_y in zip(curves, ends, strict=True):
        parts.append(_line(curve, x, y, column, label_y, WIDTH - right))
    return _svg(height, description, parts)


def _line(curve: Curve, x: "_Scale", y: "_Scale", column: str, label_y: float, right: float) -> str:
    points = " ".join(
        f"{x(s):.1f},{y(v):.1f}"
        for s, v in zip(curve.steps, curve.values, strict=True)
        if math.isfinite(v)
    )
    css = "dashed" if curve.dashed else ""
    end = curve.values[-1]
    return (
        f'<g class="d-{_css_name(column)} {css}"><title>{escape(curve.label)}</title>'
        f'<polyline class="curve" points="{points}"/>'
        f'<text class="end" x="{right + 5}" y="{label_y + 4:.1f}">{number(end)}</text></g>'
    )


def colour_range(weights: Sequence[float], least: float = 0.2) -> tuple[float, float]:
    """Return the least and greatest weight, widened to `least`, so that noise stays pale."""
    low, high = min(weights), max(weights)
    extra = max(0.0, least - (high - low)) / 2
    return low - extra, high + extra


def heat(gate: GateMap, column: str, description: str) -> str:
    """Return a heat map of one expert's gate weights: timestep across, layer down.

    All experts share one colour range (`colour_range` of all weights).
    """
    rows = gate.weights[column]
    every = [w for table in gate.weights.values() for row in table for w in row]
    low, high = colour_range(every)
    span = high - low
    left, top, bottom_space = 34, 6, 42
    cell_w = (WIDTH - left) / len(gate.timesteps)
    cell_h = min(24.0, 168 / len(rows))
    css = f"d-{_css_name(column)}"
    parts = []
    for layer, row in enumerate(rows):
        y = top + layer * cell_h
        if len(rows) <= 12 or layer % 5 == 0:
            parts.append(
                f'<text class="tick far" x="{left - 6}" y="{y + cell_h / 2 + 4:.1f}">{layer}</text>'
            )
        for index, weight in enumerate(row):
            opacity = 0.06 + 0.94 * (weight - low) / span
            where = f"layer {layer}, timestep {gate.timesteps[index]:.0f}: {number(weight, 3)}"
            parts.append(
                f'<rect class="{css}" x="{left + index * cell_w:.1f}" y="{y:.1f}" '
                f'width="{cell_w - 0.8:.1f}" height="{cell_h - 0.8:.1f}" '
                f'fill-opacity="{opacity:.3f}"><title>{where}</title></rect>'
            )
    foot = top + len(rows) * cell_h + 14
    first, last = gate.timesteps[0], gate.timesteps[-1]
    parts += [
        f'<text class="tick" x="{left}" y="{foot:.0f}">{first:.0f}</text>',
        f'<text class="tick mid" x="{(left + WIDTH) / 2}" y="{foot:.0f}">timestep</text>',
        f'<text class="tick far" x="{WIDTH}" y="{foot:.0f}">{last:.0f}</text>',
        *_legend(css, left, foot + 8, low, high),
    ]
    return _svg(int(top + len(rows) * cell_h + bottom_space), description, parts)


def _legend(css: str, left: float, y: float, low: float, high: float) -> list[str]:
    steps, width = 8, 12
    digits = 2 if high - low >= 0.05 else 3
    parts = [
        f'<rect class="{css}" x="{left + 40 + i * width}" y="{y}" width="{width}" height="9" '
        f'fill-opacity="{0.06 + 0.94 * i / (steps - 1):.2f}"/>'
        for i in range(steps)
    ]
    end = left + 46 + steps * width
    parts.append(f'<text class="tick" x="{left}" y="{y + 8}">{number(low, digits)}</text>')
    parts.append(f'<text class="tick" x="{end}" y="{y + 8}">{number(high, digits)} weight</text>')
    return parts


class _Scale:
    """A linear map from data to drawing units."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.factor = (end - start) / (high - low if high != low else 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, high, start, end)


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


def _tick(value: float, ticks: Sequence[float]) -> str:
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


def _horizontal(y: float, left: float, right: float, label: str) -> str:
    return (
        f'<path class="grid" d="M{left} {y:.1f}H{right}"/>'
        f'<text class="tick far" x="{left - 6}" y="{y + 4:.1f}">{label}</text>'
    )


def _css_name(column: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in column)


def _svg(height: float, description: str, parts: Sequence[str]) -> str:
    text = escape(description)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{text}">'
        + "".join(parts)
        + "</svg>"
    )
