"""The page of a training run: its curves, its noise levels, the gate's weights, and alarms."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ft2.files import write_atomic
from ft2.report import charts
from ft2.report.data import Curve, GateMap
from ft2.report.plain import page
from ft2.tlpo.diagnostics import LN_2, NUM_BINS

REPORT_FILE = "report.html"

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
