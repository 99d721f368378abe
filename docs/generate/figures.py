"""The figures of the explanation, drawn by ft2's own charts from ft2's own functions."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ft2.config import load_config
from ft2.critic.pages import plot
from ft2.flow import shifted_sigmas, sigma_quantiles
from ft2.report.charts import dots
from ft2.report.data import Estimate, GateMap, ScoreRow
from ft2.report.maps import heat
from ft2.tlpo.config import ExpertConfig
from ft2.tlpo.dpo import dpo_losses
from ft2.wan.audio import audio_windows

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
DIMENSIONS = ("motion", "lip", "quality")
HUES = {"motion": "#0f766e", "lip": "#b45309", "quality": "#6d28d9"}

STYLE = """<style>
svg { font: 12px system-ui, sans-serif; background: #fff; color: #222 }
text { fill: #333; stroke: none } .grid { stroke: #e3e3e3; fill: none }
.ref { stroke: #777; stroke-dasharray: 4 4; fill: none }
polyline { stroke: currentColor; stroke-width: 1.8 } circle { fill: currentColor }
.key { fill: currentColor } .bar { fill: #0f766e } .given { fill: #b45309 }
.tick, .value, .name { font-size: 11px } .mid { text-anchor: middle }
.far, .name, .value { text-anchor: end }
.whisker { stroke: currentColor; stroke-width: 2; opacity: .6 }
</style>"""


def all_svg() -> dict[str, str]:
    """Return every figure by file name."""
    demo = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    found = {
        "noise-levels.svg": _noise_levels(),
        "training-levels.svg": _training_levels(),
        "loss.svg": _loss(),
        "audio-windows.svg": _audio_windows(),
    }
    found |= {f"gate-{d}.svg": _gate(demo["gate"], d) for d in DIMENSIONS}
    compared = json.loads((RESULTS / "tlpo_compare.json").read_text(encoding="utf-8"))
    ablated = json.loads((RESULTS / "ablation.json").read_text(encoding="utf-8"))
    for d in DIMENSIONS:
        both = "both stages"
        found[f"ablation-{d}.svg"] = _difference(ablated["difference_to_base"], d, both, both)
        found[f"difference-{d}.svg"] = _difference(demo["difference_to_base"], d, "policy")
        found[f"methods-{d}.svg"] = _difference(compared["difference_to_base"], d, "gate")
    return found


def _noise_levels() -> str:
    curves = {}
    for shift, name in ((1.0, "shift 1"), (2.0, "shift 2, nano"), (5.0, "shift 5, full")):
        levels = shifted_sigmas(12, shift).tolist()
        curves[name] = list(enumerate(levels))
    ends = {"x_range": (0.0, 12.0), "y_range": (0.0, 1.5)}  # room for the names
    return _alone(plot(curves, x_label="step of 12", y_label="sigma, 1 is noise", **ends))


def _training_levels() -> str:
    """Draw how often each nano expert trains at each noise level."""
    edges = torch.linspace(0, 1, 26, dtype=torch.float64)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    curves = {}
    for dimension in DIMENSIONS:
        given = load_config(ExpertConfig, f"nano/expert-{dimension}").sigma
        below = sigma_quantiles(
            edges.clamp(1e-9, 1 - 1e-9), mean=given.mean, std=given.std, shift=given.shift
        )
        density = ((below[1:] - below[:-1]) * 25).tolist()
        curves[dimension] = list(zip(middles, density, strict=True))
    return _alone(plot(curves, x_label="sigma, 1 is noise", y_label="density"))


def _loss() -> str:
    z = torch.linspace(-6, 6, 49, dtype=torch.float64)
    curves = {
        "-log sigmoid(z)": dpo_losses(z),
        "target_probability 0.9": dpo_losses(z, 0.9),
        "gradient factor sigmoid(-z)": torch.sigmoid(-z),
    }
    points = {k: list(zip(z.tolist(), v.tolist(), strict=True)) for k, v in curves.items()}
    return _alone(plot(points, x_label="margin z", y_label="loss", mark_x=0.0))


def _audio_windows() -> str:
    """Draw which audio tokens each latent frame hears: 81 frames at 23 a second, 175 tokens."""
    windows = audio_windows(175, 81)
    left, top, row, width = 40, 8, 9, 460
    unit = (width - left - 10) / 175
    parts = []
    for index, (start, length) in enumerate(zip(windows.starts, windows.lengths, strict=True)):
        y = top + index * row
        css = "given" if index == 0 else "bar"
        parts.append(
            f'<rect class="{css}" x="{left + start * unit:.1f}" y="{y}" '
            f'width="{length * unit:.1f}" height="{row - 2}"/>'
        )
        if index % 5 == 0:
            parts.append(f'<text class="far" x="{left - 6}" y="{y + 8}">{index}</text>')
    foot = top + row * len(windows.starts)
    for token in range(0, 176, 25):
        x = left + token * unit
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{foot}"/>')
        parts.append(f'<text class="mid" x="{x:.1f}" y="{foot + 14}">{token}</text>')
    parts.append(f'<text class="mid" x="{width / 2}" y="{foot + 30}">audio token</text>')
    text = "audio tokens that each of 21 latent frames hears"
    svg = f'<svg viewBox="0 0 {width} {foot + 36}" role="img"><title>{text}</title>'
    return _alone(svg + "".join(parts) + "</svg>")


def _gate(gate: Mapping[str, Any], dimension: str) -> str:
    drawn = heat(GateMap(gate["timesteps"], gate["weights"]), dimension, f"gate, {dimension}")
    return _alone(drawn, dimension)


def _difference(rows: Mapping[str, Any], dimension: str, main: str, base: str = "base") -> str:
    shown = [
        ScoreRow(name, {dimension: _estimate(row[dimension])}, highlight=name == main)
        for name, row in {base: dict.fromkeys(DIMENSIONS), **rows}.items()
    ]
    beside = "the base" if base == "base" else base
    return _alone(dots(shown, dimension, f"difference to {beside}, {dimension}"), dimension)


def _estimate(value: Mapping[str, float] | None) -> Estimate:
    return Estimate(value["value"], value["low"], value["high"]) if value else Estimate(0.0)


def _alone(svg: str, dimension: str = "") -> str:
    """Return a chart as a file of its own: with name space, size and style."""
    found = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', svg)
    assert found is not None
    size = f' xmlns="http://www.w3.org/2000/svg" width="{found[1]}" height="{found[2]}"'
    style = STYLE
    if dimension:
        hue = HUES[dimension]
        coloured = f"rect, circle {{ fill: {hue} }} .whisker {{ color: {hue} }}\n</style>"
        style = style.replace("</style>", coloured)
    head = svg[: found.end()] + size
    rest = svg[found.end() :]
    return head + rest.replace(">", ">\n" + style + "\n", 1).replace("/><", "/>\n<") + "\n"
