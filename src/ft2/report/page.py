"""Render a report as one HTML page."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ft2.errors import RunError
from ft2.files import write_atomic
from ft2.report import charts
from ft2.report.data import Estimate, Report
from ft2.report.maps import heat

_LN2 = 0.693147


def render_report(report: Report) -> str:
    """Return the page as HTML text; clips are referred to by their relative paths."""
    environment = Environment(
        loader=PackageLoader("ft2.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "num": charts.number,
        "signed": _signed,
        "interval": _interval,
        "duration": _duration,
        "unclear": _unclear,
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        dimensions=("motion", "lip", "quality"),
        score_charts=_score_charts(report),
        expert_charts=_expert_charts(report),
        gate_charts=_gate_charts(report),
        gate_range=_gate_range(report),
    )


def write_report(report: Report, path: Path) -> Path:
    """Write the page to `path` and return it.

    Raises:
        RunError: a clip or picture that the page shows is not there.
    """
    missing = [name for name in _files(report) if not (path.parent / name).is_file()]
    if missing:
        raise RunError(
            f"the report shows files that are not there: {', '.join(missing[:5])}",
            "write the clips beside the report first",
        )
    write_atomic(path, render_report(report))
    return path


def _files(report: Report) -> set[str]:
    clips = [clip for sample in report.samples for clip in sample.clips]
    clips += [c for example in report.pair_examples for c in (example.chosen, example.rejected)]
    return {name for clip in clips for name in (clip.video, clip.poster) if name}


def _score_charts(report: Report) -> dict[str, Markup]:
    columns = list(report.judges)
    return {
        column: Markup(charts.dots(report.scores, column, f"{column} score of each policy"))  # noqa: S704
        for column in columns
    }


def _expert_charts(report: Report) -> dict[str, tuple[Markup, Markup]]:
    shown = {}
    for expert in report.experts:
        name = expert.dimension
        loss = charts.lines(expert.losses, name, f"{name} expert: loss", reference=_LN2)
        accuracy = charts.lines(
            expert.accuracies, name, f"{name} expert: accuracy", reference=0.5, limits=(0.4, 1.0)
        )
        shown[name] = (Markup(loss), Markup(accuracy))  # noqa: S704
    return shown


def _gate_range(report: Report) -> tuple[float, float]:
    """Return the least and greatest weight of the gate; (0, 0) without one."""
    tables = report.gate.weights.values() if report.gate else ()
    every = [weight for table in tables for row in table for weight in row]
    return min(every, default=0.0), max(every, default=0.0)


def _gate_charts(report: Report) -> dict[str, Markup]:
    if report.gate is None:
        return {}
    return {
        name: Markup(heat(report.gate, name, f"gate weights of the {name} expert"))  # noqa: S704
        for name in report.gate.weights
    }


def _signed(value: float) -> str:
    text = charts.number(value)
    return text if text.startswith("\u2212") or value == 0 else f"+{text}"


def _interval(estimate: Estimate, signed: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    write = _signed if signed else charts.number
    return f"{write(estimate.low)} to {write(estimate.high)}"


def _unclear(estimate: Estimate) -> bool:
    """Return whether an interval holds zero."""
    return (
        estimate.low is not None
        and estimate.high is not None
        and (estimate.low <= 0 <= estimate.high)
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "\u2013"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min"
