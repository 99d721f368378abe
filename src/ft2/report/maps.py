"""Charts of a network by layer: heat maps over the noise level, and bars."""

from collections.abc import Sequence
from html import escape

from ft2.report.charts import (
    WIDTH,
    Scale,
    css_name,
    horizontal,
    nice_ticks,
    number,
    svg,
    tick_text,
)
from ft2.report.data import GateMap

_LEFT = 34


def colour_range(weights: Sequence[float], least: float = 0.2) -> tuple[float, float]:
    """Return the least and greatest weight, widened to `least`, so that noise stays pale."""
    low, high = min(weights), max(weights)
    extra = max(0.0, least - (high - low)) / 2
    return low - extra, high + extra


def heat(
    gate: GateMap, column: str, description: str, unit: str = "weight", *, signed: bool = False
) -> str:
    """Return a heat map of one table: timestep across, layer down.

    All tables share one colour range: `colour_range` of all values, or with `signed` from minus to
    plus the greatest, 0 being paper and what is below it of another hue.
    """
    rows = gate.weights[column]
    every = [w for table in gate.weights.values() for row in table for w in row]
    low, high = colour_range(every)
    if signed:
        high = max(0.2, *(abs(value) for value in every))
        low = -high
    top, bottom_space = 6, 42
    cell_w = (WIDTH - _LEFT) / len(gate.timesteps)
    cell_h = min(24.0, 168 / len(rows))
    parts = []
    for layer, row in enumerate(rows):
        y = top + layer * cell_h
        if len(rows) <= 12 or layer % 5 == 0:
            parts.append(_far(y + cell_h / 2 + 4, str(layer)))
        for index, weight in enumerate(row):
            where = f"layer {layer}, timestep {gate.timesteps[index]:.0f}: {number(weight, 3)}"
            parts.append(
                f'<rect x="{_LEFT + index * cell_w:.1f}" y="{y:.1f}" width="{cell_w - 0.8:.1f}" '
                f'height="{cell_h - 0.8:.1f}" {_shade(weight, low, high, column)}>'
                f"<title>{where}</title></rect>"
            )
    foot = top + len(rows) * cell_h + 14
    first, last = gate.timesteps[0], gate.timesteps[-1]
    parts += [
        f'<text class="tick" x="{_LEFT}" y="{foot:.0f}">{first:.0f}</text>',
        f'<text class="tick mid" x="{(_LEFT + WIDTH) / 2}" y="{foot:.0f}">timestep</text>',
        f'<text class="tick far" x="{WIDTH}" y="{foot:.0f}">{last:.0f}</text>',
        *_legend(column, foot + 8, low, high, unit),
    ]
    return svg(int(top + len(rows) * cell_h + bottom_space), description, parts)


def _shade(value: float, low: float, high: float, column: str) -> str:
    """Return a rectangle's class and opacity; a range around 0 has a hue for each sign."""
    if low == -high:
        part, sign = abs(value) / high, " below" if value < 0 else ""
    else:
        part, sign = (value - low) / (high - low), ""
    return f'class="d-{css_name(column)}{sign}" fill-opacity="{0.06 + 0.94 * part:.3f}"'


def _legend(column: str, y: float, low: float, high: float, unit: str) -> list[str]:
    steps, width = 8, 12
    digits = 2 if high - low >= 0.05 else 3
    parts = []
    for i in range(steps):
        shade = _shade(low + (high - low) * i / (steps - 1), low, high, column)
        x = _LEFT + 40 + i * width
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="9" {shade}/>')
    end = _LEFT + 46 + steps * width
    parts.append(f'<text class="tick" x="{_LEFT}" y="{y + 8}">{number(low, digits)}</text>')
    parts.append(f'<text class="tick" x="{end}" y="{y + 8}">{number(high, digits)} {unit}</text>')
    return parts


def bars(values: Sequence[float], description: str, axis: str = "block", height: int = 132) -> str:
    """Return a bar for each value, from 0, numbered from 0."""
    ticks = nice_ticks(0.0, max(values), 3)
    left, top, bottom = 44, 8, height - 22
    y = Scale(ticks[0], ticks[-1], bottom, top)
    pitch = (WIDTH - left) / len(values)
    parts = [horizontal(y(t), left, WIDTH, tick_text(t, ticks)) for t in ticks]
    for index, value in enumerate(values):
        x = left + index * pitch
        parts.append(
            f'<rect x="{x + 0.1 * pitch:.1f}" y="{y(value):.1f}" width="{0.8 * pitch:.1f}" '
            f'height="{max(0.0, bottom - y(value)):.1f}"><title>{escape(axis)} {index}: '
            f"{value:.3g}</title></rect>"
        )
        if len(values) <= 12 or index % 5 == 0:
            middle = x + pitch / 2
            parts.append(f'<text class="tick mid" x="{middle:.1f}" y="{height - 6}">{index}</text>')
    parts.append(f'<text class="tick far" x="{left - 6}" y="{height - 6}">{escape(axis)}</text>')
    return svg(height, description, parts)


def _far(y: float, text: str) -> str:
    return f'<text class="tick far" x="{_LEFT - 6}" y="{y:.1f}">{text}</text>'
