"""The page of a training run: its curves, its noise levels, the gate's weights, and alarms."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ft2.files import write_atomic
from ft2.report import charts
from ft2.report.data import Curve, GateMap
from ft2.tlpo.diagnostics import LN_2, NUM_BINS

REPORT_FILE = "report.html"

_STYLE = """
:root { --paper: #fcfcfa; --ink: #1b1e23; --muted: #58606b; --rule: #dfdfd8; --hue: #1d66b0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171b; --ink: #e9e8e3; --muted: #a0a8b2; --rule: #30343b; --hue: #74b3f2; } }
body { margin: 2rem auto; max-width: 68rem; padding: 0 1.25rem; background: var(--paper);
  color: var(--ink); font: 400 1rem/1.5 ui-sans-serif, system-ui, sans-serif; }
figure { margin: 0; }
h1, h2 { font-weight: 500; line-height: 1.2; } h2 { margin-top: 2rem; font-size: 1.2rem; }
.charts { display: grid; gap: 1.5rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.note { color: var(--muted); font-size: .875rem; }
.alarm { border-left: 4px solid #b5460f; padding-left: .75rem; }
table { border-collapse: collapse; font-size: .9rem; } .scroll { overflow-x: auto; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child { text-align: left; font-weight: 500; }
svg { display: block; width: 100%; max-width: 26rem; overflow: visible; fill: var(--ink);
  font: 12px ui-sans-serif, system-ui, sans-serif; }
svg .tick { fill: var(--muted); font-size: 11px; } svg .mid { text-anchor: middle; }
svg .far { text-anchor: end; } svg .end { font-size: 11px; }
svg .grid { stroke: var(--rule); fill: none; }
svg .ref { stroke: var(--muted); stroke-dasharray: 3 3; fill: none; }
svg .curve { fill: none; stroke: var(--hue); stroke-width: 1.8; }
svg .dashed .curve { stroke-dasharray: 5 4; } svg rect, svg circle { fill: var(--hue); }
svg .whisker { stroke: var(--hue); stroke-width: 2; opacity: .7; }
svg .name, svg .value { text-anchor: end; } svg .value { font-size: 11px; }
"""

_CHARTS: tuple[tuple[str, str, tuple[str, ...], float | None], ...] = (
    ("Loss", "dashed line: ln 2, where it starts", ("loss",), LN_2),
    ("Implicit accuracy", "share of pairs ranked right; dashed curve: held-out pairs",
     ("implicit_accuracy", "held_out_implicit_accuracy"), 0.5),
    ("Error against the reference", "chosen side, dashed the rejected side; below 0 fits better",
     ("d_chosen", "d_rejected"), 0.0),
    ("Gradient factor", "mean sigmoid(-z): 0.5 at the start, below 0.1 saturated",
     ("gradient_factor",), 0.5),
    ("Margin", "mean z, and dashed its 95th percentile", ("margin", "margin_p95"), 0.0),
    ("Distance to the reference", "mean squared difference of velocities, in the mask; dashed: "
     "outside", ("kl_proxy", "kl_proxy_outside"), None),
    ("Gradient norm", "before clipping", ("grad_norm",), None),
)  # fmt: skip


def write_run_report(
    run: Path, title: str, result: Mapping[str, object], gate: GateMap | None = None
) -> Path:
    """Write ``report.html`` of a finished training run and return its path.

    Args:
        run: Run directory with ``metrics.jsonl``.
        title: What was trained.
        result: The run's result: numbers, and ``alarms`` in words.
        gate: Weights of a trained gate.
    """
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    history = [json.loads(line) for line in lines]
    parts = [f"<h1>{escape(title)}</h1>", _summary(result), _alarms(result)]
    parts += ["<h2>Training</h2>", '<div class="charts">', *_curves(history), "</div>"]
    parts += [_noise_levels(history)]
    if gate is not None:
        parts += ["<h2>Gate: weight by layer (down) and noise level (across)</h2>"]
        parts += ['<div class="charts">']
        for name in gate.weights:
            chart = charts.heat(gate, name, f"gate weights of the {name} expert")
            parts.append(f"<figure><b>{escape(name)}</b>{chart}</figure>")
        parts += ["</div>"]
    write_atomic(run / REPORT_FILE, page(title, parts))
    return run / REPORT_FILE


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole HTML page with the style of the charts."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _summary(result: Mapping[str, object]) -> str:
    shown = []
    for name in ("pairs", "dropped", "steps", "stopped", "parameters", "norm_b", "entropy"):
        value = result.get(name)
        if value not in (None, {}):
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            shown.append(f"{name} {text}")
    held_out = result.get("held_out")
    if isinstance(held_out, Mapping) and held_out.get("pairs"):
        accuracy = held_out["implicit_accuracy"]
        shown.append(f"held-out implicit accuracy {accuracy:.2f} on {held_out['pairs']} pairs")
    return f'<p class="note">{escape(" · ".join(shown))}</p>'


def _alarms(result: Mapping[str, object]) -> str:
    alarms = result.get("alarms")
    if not isinstance(alarms, list) or not alarms:
        return "<p>No alarm.</p>"
    texts = [
        f"<b>Step {a['step']}: {escape(a['text'])}.</b> {escape(a['advice'])}." for a in alarms
    ]
    return "".join(f'<p class="alarm">{text}</p>' for text in texts)


def _curves(history: Sequence[Mapping[str, object]]) -> list[str]:
    shown = []
    for title, note, names, reference in _CHARTS:
        curves = []
        for name in names:
            points = [(h["step"], h[name]) for h in history if _is_number(h.get(name))]
            if points:
                steps, values = zip(*points, strict=True)
                curves.append(Curve(name, steps, values, dashed=name != names[0]))
        if curves:
            chart = charts.lines(curves, "run", title, reference=reference)
            shown.append(f'<figure><b>{title}</b><div class="note">{note}</div>{chart}</figure>')
    return shown


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _noise_levels(history: Sequence[Mapping[str, object]]) -> str:
    """Return a table of both differences by tenth of the noise levels, over the last half."""
    late = [h["bins"] for h in history[len(history) // 2 :] if isinstance(h.get("bins"), Mapping)]
    if not late:
        return ""
    counts = [sum(b["count"][i] for b in late) for i in range(NUM_BINS)]  # type: ignore[index]
    rows = [("pairs and draws", [f"{count:.0f}" for count in counts])]
    for name, label in (("d_chosen", "chosen side"), ("d_rejected", "rejected side")):
        cells = []
        for i, count in enumerate(counts):
            total = sum((b[name][i] or 0.0) * b["count"][i] for b in late)  # type: ignore[index]
            cells.append(f"{total / count:+.1e}" if count else "")
        rows.append((label, cells))
    head = "".join(f"<th>{i + 1}</th>" for i in range(NUM_BINS))
    body = "".join(
        f"<tr><th>{label}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for label, cells in rows
    )
    return (
        "<h2>Error against the reference by noise level</h2>"
        '<p class="note">Tenths of the training distribution, from little to much noise; the last '
        f'half of the steps.</p><div class="scroll"><table><tr><th></th>{head}</tr>{body}</table>'
        "</div>"
    )
