"""An evaluation from inputs to files: what is compared, measured, summed up, written."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ft2.cli.evaluate_page import write_page
from ft2.config import Config
from ft2.errors import RunError, UsageError
from ft2.files import write_atomic, write_json
from ft2.metrics import summary
from ft2.metrics.clips import Entry, find_clips, match
from ft2.metrics.config import EvaluateConfig
from ft2.metrics.critic import CriticScores
from ft2.metrics.evaluate import Bench, Features, Row, choose, facts_of, measure_set
from ft2.metrics.tables import markdown
from ft2.runs import Progress, RunDir


class Inputs(Config):
    """What is evaluated, and how; recorded as the run's config."""

    run: Path
    """Folder of videos, or one."""
    against: Path | None = None
    """Folder that it is compared with, clip by clip."""
    reference: Path | None = None
    """Real clips for FID and FVD."""
    critic: Path | None = None
    """A trained critic."""
    settings: EvaluateConfig = EvaluateConfig()
    """Metrics, weights, intervals."""


@dataclass(frozen=True)
class Plan:
    """What will be measured; made before anything is loaded."""

    sets: dict[str, list[Entry]]
    matched: list[tuple[Entry, Entry]]
    bench: Bench

    def describe(self) -> dict[str, Any]:
        """Return the plan for `--dry-run`."""
        return {
            "clips": {name: len(entries) for name, entries in self.sets.items()},
            "failed": {n: sum(e.path is None for e in entries) for n, entries in self.sets.items()},
            "pairs": len(self.matched),
            "metrics": list(self.bench.metrics),
            "gaps": dict(self.bench.gaps),
            "remarks": self.bench.remarks,
        }


def plan(inputs: Inputs, critic: CriticScores | None) -> Plan:
    """Return what would be measured.

    Raises:
        UsageError: No clips, folders that do not match, a metric without what it needs.
    """
    pattern = inputs.settings.condition
    named = {"run": inputs.run, "against": inputs.against, "reference": inputs.reference}
    sets = {name: find_clips(path, pattern) for name, path in named.items() if path is not None}
    if inputs.against is not None and inputs.against.resolve() == inputs.run.resolve():
        raise UsageError(f"'{inputs.run}' is compared with itself", "give another --against")
    matched = match(sets["run"], sets["against"]) if "against" in sets else []
    return Plan(sets, matched, choose(inputs.settings, critic))


def run_evaluation(
    inputs: Inputs, made: Plan, output: Path, resume: bool, progress: Progress
) -> dict[str, Any]:
    """Measure everything, write ``result.json``, ``clips.json``, ``table.md``, ``report.html``.

    Raises:
        RunError: No clip of the run could be measured.
    """
    run = RunDir.open(output, config=inputs, resume=resume)
    if run.result is not None:
        return run.result
    rows: dict[str, list[Row]] = {}
    features: dict[str, Features] = {}
    for name, entries in made.sets.items():
        bench = made.bench if name != "reference" else _only_sets(made.bench)
        rows[name], features[name] = measure_set(
            entries, bench, output / "measured" / name, progress, name
        )
    if not any("values" in row for row in rows["run"]):
        raise RunError(f"none of {len(rows['run'])} clips could be measured: "
                       f"{rows['run'][0].get('error')}", "see clips.json")  # fmt: skip
    result = _summed(inputs, made, rows, features)
    write_json(output / "clips.json", rows)
    write_atomic(output / "table.md", markdown(result))
    shown = _copied(made, rows, inputs.settings.shown_clips, output)
    write_page(output / "report.html", result, rows, shown)
    run.finish(result)
    return result


def _only_sets(bench: Bench) -> Bench:
    """Return the metrics that need a reference's features."""
    kept = {name: metric for name, metric in bench.metrics.items() if metric.facts.of_sets}
    return Bench(kept, {})


def _summed(
    inputs: Inputs, made: Plan, rows: dict[str, list[Row]], features: dict[str, Features]
) -> dict[str, Any]:
    distances, notes = summary.distances(features) if len(features) > 1 else ({}, [])
    gaps = dict(made.bench.gaps)
    if len(features) == 1:
        of_sets = [name for name in made.bench.metrics if made.bench.metrics[name].facts.of_sets]
        gaps |= dict.fromkeys(of_sets, "needs a second set: --against or --reference PATH")
    other = rows.get("against")
    labels = _labels(inputs)
    names = (labels["run"], labels["against"])
    remarks = summary.remarks_of(rows["run"], other, made.matched, made.bench, names)
    settings = inputs.settings
    return {
        "run": _part(labels["run"], rows["run"], settings),
        "against": None if other is None else _part(labels["against"], other, settings),
        "pairs": len(made.matched),
        "paired": summary.paired(rows["run"], other, made.matched, settings) if other else {},
        "distances": distances,
        "remarks": remarks + notes,
        "gaps": gaps,
        "facts": facts_of(made.bench),
        "weights": {key: asdict(found) for key, found in made.bench.weights.items()},
    }


def _labels(inputs: Inputs) -> dict[str, str]:
    """Return a short name of each set: its folder's, with the parent's where those are equal."""
    paths = {"run": inputs.run.resolve(), "against": (inputs.against or Path()).resolve()}
    names = {which: path.stem for which, path in paths.items()}
    if names["run"] == names["against"]:
        names = {which: f"{path.parent.name}/{path.stem}" for which, path in paths.items()}
    if names["run"] == names["against"]:
        names = {which: str(path) for which, path in paths.items()}
    return names


def _part(label: str, rows: Sequence[Row], settings: EvaluateConfig) -> dict[str, Any]:
    return {
        "label": label,
        "counts": summary.counts(rows),
        "means": summary.set_estimates(rows, settings),
    }


def _copied(
    made: Plan, rows: dict[str, list[Row]], count: int, output: Path
) -> list[dict[str, str]]:
    """Copy evenly chosen clips (not by score) beside the page; return their relative paths."""
    failed = {row["name"] for part in rows.values() for row in part if row.get("error")}
    pairs = [{"run": a, "against": b} for a, b in made.matched] or [
        {"run": entry} for entry in made.sets["run"]
    ]
    pairs = [pair for pair in pairs if all(e.path and e.name not in failed for e in pair.values())]
    step = max(len(pairs) / max(count, 1), 1.0)
    chosen = [pairs[int(i * step)] for i in range(min(count, len(pairs)))]
    shown = []
    for pair in chosen:
        cells = {"name": pair["run"].name}
        for label, entry in pair.items():
            assert entry.path is not None
            target = output / "clips" / f"{label}-{entry.path.name}"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(entry.path, target)
            cells[label] = f"clips/{target.name}"
        shown.append(cells)
    return shown
