"""The page of all measured figures, from benchmarks/results and the shipped weights' provenance."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PROVENANCE = ROOT / "src" / "ft2" / "weights" / "nano" / "provenance.json"

TITLES = {
    "demo": "The demo",
    "critic": "Questions in one forward",
    "judges": "Judges on known defects",
    "generate": "Generating",
    "nsq": "Building preference data",
    "tlpo": "Training experts and the gate",
    "tlpo_linear": "Experts on one frozen linear, against PEFT",
    "tlpo_compare": "Methods against each other",
    "tlpo_compare_windows": "Experts on windows of noise",
    "gate_study": "When a gate pays",
    "gate_nano": "What gates are worth over nano's experts",
    "label_study": "Are the critic's pairs right?",
    "codec": "The nano codec",
    "critic_evidence": "The critic over three seeds",
    "critic_shift": "The critic on sound moved in time",
    "metric_blindness": "What each metric sees",
    "ablation": "Ablating base training",
    "branches": "Identity and motion branches",
    "generator_cache": "Training from the cache",
}
COMMANDS = {
    "generate": "python benchmarks/generate.py",
    "critic": "python benchmarks/critic.py --clips 3 --rounds 3",
    "judges": "python benchmarks/judges.py --landmarks",
    "nsq": "python benchmarks/nsq.py --scale 3 --peers PYTHON",
    "codec": "python benchmarks/codec.py",
}
"""For results that were written before they named their command themselves."""
DATE = "2026-11-20"
"""When those were measured."""

LEAD = """# What was measured

Every figure that a benchmark of the repository printed, as it was saved, with the command, the
machine and the date; and what is known of the shipped weights. The page is generated from
`benchmarks/results/*.json` and `provenance.json` (`python docs/generate`), and a test compares it
with them. `value [low, high]` is a 95 % bootstrap interval. Nothing here was measured with real 7B
or 14B weights, nor on a GPU unless the machine line names one.

Two cores of a shared machine are a poor stopwatch: trust ratios within one run, not seconds.
"""


def page() -> str:
    """Return the page as Markdown."""
    names = sorted(p.stem for p in RESULTS.glob("*.json"))
    names.sort(key=lambda name: list(TITLES).index(name) if name in TITLES else len(TITLES))
    parts = [LEAD, *(_result(name) for name in names), _weights()]
    return "\n".join(parts)


def _result(name: str) -> str:
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    machine = data.pop("machine", {})
    command = data.pop("command", None) or machine.pop("command", None) or COMMANDS.get(name)
    date = data.pop("date", None) or machine.pop("date", None) or DATE
    title = TITLES.get(name, name.capitalize())
    facts = [f"| command | `{command or f'python benchmarks/{name}.py'}` |", f"| date | {date} |"]
    facts.append(f"| machine | {_inline(machine)} |")
    if setting := data.pop("setting", None):
        facts.append(f"| setting | {_inline(setting)} |")
    facts.append(f"| file | `benchmarks/results/{name}.json` |")
    head = f"## {title}\n\n{_docstring(name)}\n\n| | |\n|---|---|\n" + "\n".join(facts) + "\n"
    return head + "\n" + _body(data, 3)


def _docstring(name: str) -> str:
    """Return the benchmark's own account of itself, without its usage lines."""
    script = ROOT / "benchmarks" / f"{name}.py"
    if not script.is_file():
        return ""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return text.replace("::\n", ":\n") if "::" in text else text


def _weights() -> str:
    """Return what the provenance says of each shipped model's held-out figures."""
    record = json.loads(PROVENANCE.read_text(encoding="utf-8"))
    parts = ["## The shipped nano weights\n", "File: `src/ft2/weights/nano/provenance.json`.\n"]
    for name in ("thinker", "generator"):
        entry = record[name]
        parts.append(f"### {name.capitalize()}\n\n{entry['what']}. Has seen: {entry['seen']}.\n")
        rows = [
            f"| `{_command(run)}` | {run.get('device') or entry.get('device')} "
            f"| {_cell(run.get('steps'))} | {_cell(run.get('seconds'))} |"
            for run in entry["runs"]
        ]
        parts.append("| run | device | steps | seconds |\n|---|---|---|---|\n" + "\n".join(rows))
        parts.append("\n" + _body({"held out": entry["held_out"]}, 4))
    return "\n".join(parts)


def _command(run: Mapping[str, Any]) -> str:
    return str(run.get("command", "")).replace("|", "\\|")


def _body(data: Mapping[str, Any], level: int) -> str:
    """Return nested figures as tables: scalars first, tables of equal rows, then the rest."""
    plain = {k: v for k, v in data.items() if not _is_group(v)}
    parts = []
    if plain:
        rows = "\n".join(f"| {_label(k)} | {_cell(v)} |" for k, v in plain.items())
        parts.append(f"| | |\n|---|---|\n{rows}\n")
    for key, value in data.items():
        if _is_group(value):
            heading = f"{'#' * min(level, 6)} {_label(key)}"
            inner = _matrix(value) or _body(value, level + 1)
            parts.append(f"{heading}\n\n{inner}")
    return "\n".join(parts)


def _matrix(rows: Mapping[str, Any]) -> str:
    """Return a table of two or more groups that have the same plain columns, else nothing."""
    groups = list(rows.values())
    if len(groups) < 2 or not all(_is_group(g) for g in groups):
        return ""
    columns = list(dict.fromkeys(column for group in groups for column in group))
    if len(columns) > 12 or any(_is_group(v) for group in groups for v in group.values()):
        return ""
    lines = ["| | " + " | ".join(_label(c) for c in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, group in rows.items():
        cells = " | ".join(_cell(group[c]) if c in group else "" for c in columns)
        lines.append(f"| {_label(name)} | {cells} |")
    return "\n".join(lines) + "\n"


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and not _is_figure(value)


def _is_figure(value: Any) -> bool:
    """Whether a mapping is one figure: an estimate with its interval, or mean and spread."""
    if not isinstance(value, Mapping):
        return False
    return {"value", "low", "high"} <= set(value) or set(value) == {"mean", "std"}


def _cell(value: Any) -> str:
    if _is_figure(value):
        if "mean" in value:
            return f"{_number(value['mean'])} ± {_number(value['std'])}"
        return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"
    if isinstance(value, list):
        if value and isinstance(value[0], list | Mapping):
            return f"{len(value)} entries, see the file"
        return ", ".join(_number(v) for v in value)
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")


def _label(key: str) -> str:
    return str(key).replace("_", " ").replace("|", "\\|")


def _inline(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{_label(k)}: {_cell(v)}" for k, v in values.items()) or "-"
