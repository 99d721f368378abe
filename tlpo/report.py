"""The page of a training run: its curves, noise levels, weights, speed and alarms."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ft2.files import write_atomic
from ft2.report import charts
from ft2.report.data import Curve, GateMap
from ft2.report.maps import bars, heat
from ft2.report.plain import page
from ft2.tlpo.diagnostics import LN_2
from ft2.tlpo.report_tables import held_out, noise_levels

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
    ("Gradient norm", "before clipping, and dashed after it", ("grad_norm", "grad_norm_clipped"),
     None),
    ("Size of the expert", "|BA| / |W| over all its linears", ("weight_change",), None),
    ("Gate: entropy", "of the softmax part over ln K: 1 uniform, below 0.2 collapsed; dashed: the "
     "greatest mean share of an expert, above 0.9 collapsed", ("gate_entropy", "gate_share"), 1.0),
    ("Gate: sum of weights", "mean over layers and noise levels", ("gate_sum",), None),
)  # fmt: skip


_SPEED = (
    ("perf_seconds_per_pair", "{:.3g} s a pair"),
    ("perf_tflops", "{:.3g} TFLOP/s"),
    ("perf_memory_gib", "peak memory {:.3g} GiB"),
    ("perf_reference_share", "{:.0%} of the time in the reference pass"),
    ("perf_data_share", "{:.1%} waiting for data"),
)


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
    parts += ["<h2>Training</h2>", _figures([*_curves(history), *_gate_weights(history)])]
    parts += [*noise_levels(history), *held_out(result), *_blocks(history)]
    if gate is not None:
        parts += ["<h2>Gate: weight by layer (down) and noise level (across)</h2>"]
        parts += [_maps(gate, "gate weights of the {} expert")]
    parts += [*_conflict(run / "conflict.json"), *_speed(history)]
    write_atomic(run / REPORT_FILE, page(title, parts))
    return run / REPORT_FILE


def _figures(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>'


def _figure(title: str, note: str, chart: str) -> str:
    told = f'<div class="note">{escape(note)}</div>' if note else ""
    return f"<figure><b>{escape(title)}</b>{told}{chart}</figure>"


def _maps(tables: GateMap, description: str, unit: str = "weight", *, signed: bool = False) -> str:
    return _figures([
        _figure(name, "", heat(tables, name, description.format(name), unit, signed=signed))
        for name in tables.weights
    ])  # fmt: skip


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
            shown.append(_figure(title, note, chart))
    return shown


def _gate_weights(history: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the chart of each expert's mean weight, for a gate."""
    prefix = "gate_weight_"
    curves = []
    for key in [k for k in (history or [{}])[0] if k.startswith(prefix)]:
        points = [(h["step"], h[key]) for h in history if _is_number(h.get(key))]
        steps, values = zip(*points, strict=True)
        curves.append(Curve(key.removeprefix(prefix), steps, values))
    if not curves:
        return []
    chart = charts.lines(curves, "run", "mean gate weights", named=True)
    return [_figure("Gate: weights", "means over layers and noise levels", chart)]


def _blocks(history: Sequence[Mapping[str, object]]) -> list[str]:
    """Return bars of the expert's size by block, as last looked at."""
    seen = [h["blocks"] for h in history if isinstance(h.get("blocks"), Mapping)]
    if not seen:
        return []
    last: Mapping[str, Sequence[float]] = seen[-1]  # type: ignore[assignment]
    drawn = [
        _figure("|B|", "norm of the up-projections", bars(last["norm_b"], "norm of B by block")),
        _figure("|BA| / |W|", "change of the adapted weights",
                bars(last["weight_change"], "change of the weights by block")),
    ]  # fmt: skip
    return ["<h2>Size of the expert by block</h2>", _figures(drawn)]


def _conflict(file: Path) -> list[str]:
    """Return the maps of the cosine of experts' outputs, where they were looked at."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "cosine" not in found:
        return []
    note = (
        "Cosine of two experts' outputs on what the base's linears read, by layer (down) and noise "
        f"level (across), before the gate is trained; {found['pairs']} held-out pairs. Below 0 "
        "they pull against each other."
    )
    tables = GateMap(found["timesteps"], found["cosine"])
    maps = _maps(tables, "cosine of the outputs of {}", "cosine", signed=True)
    return ["<h2>Do the experts conflict?</h2>", f'<p class="note">{escape(note)}</p>', maps]


def _speed(history: Sequence[Mapping[str, object]]) -> list[str]:
    """Return medians of what steps took, and the peak of memory."""
    told = []
    for name, text in _SPEED:
        values = [float(h[name]) for h in history if _is_number(h.get(name))]  # type: ignore[arg-type]
        if values:
            middle = max(values) if "memory" in name else statistics.median(values)
            told.append(text.format(middle))
    if not told:
        return []
    return ["<h2>Speed</h2>", f'<p>{escape("; ".join(told))}.</p>',
            '<p class="note">Medians over steps, of the slowest process. Operations as planned, '
            "not counted.</p>"]  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
