"""Measure sets of clips: every clip by every metric that can run, kept clip by clip."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ft2.errors import MissingExtra, UsageError
from ft2.files import hash_file, read_json, write_atomic, write_json
from ft2.metrics.build import build
from ft2.metrics.catalogue import FACTS
from ft2.metrics.clips import Entry
from ft2.metrics.config import EvaluateConfig
from ft2.metrics.measure import Clip, Measured, Metric
from ft2.metrics.weights import Identity, identify
from ft2.runs import Progress

Row = dict[str, Any]
"""One clip: what it is, its values by column, its gaps by metric, or the error that lost it."""

Features = dict[str, NDArray[np.float32]]
"""Rows [N, D] by the name of the metric."""


@dataclass(frozen=True)
class Bench:
    """The metrics that can run, and why the others cannot."""

    metrics: dict[str, Metric]
    gaps: dict[str, str]
    weights: dict[str, Identity] = field(default_factory=dict)
    """What the given weights are, by config key."""

    @property
    def remarks(self) -> list[str]:
        """Weights that are not the published ones, and terms that forbid something."""
        unlike = [identity.remark for identity in self.weights.values() if identity.remark]
        return unlike + [term for name in self.metrics for term in FACTS[name].terms]


def choose(settings: EvaluateConfig, critic: Metric | None = None) -> Bench:
    """Return the metrics that can run; no model is loaded, but every file is looked at.

    ES and IDC bring the measures of motion with them: a still video maximises both.

    Args:
        settings: Which metrics, and where their weights are.
        critic: The critic's scores, which only the command line can bring.

    Raises:
        UsageError: A weights file is missing, not what was published, or one that a metric named
            in ``metrics`` needs is not given.
    """
    wanted = set(settings.metrics or FACTS)
    if {"expression", "identity"} & wanted:
        wanted |= {"dynamics", "motion"}
    bench = Bench({}, {}, {})
    for name in (name for name in FACTS if name in wanted):
        reason = _missing(name, settings, critic)
        if reason is None:
            bench.weights.update(_identities(name, settings))
            bench.metrics[name] = critic if name == "critic" and critic else build(name, settings)
        elif name in settings.metrics:
            raise UsageError(
                f"the metric '{name}' cannot run: it {reason}",
                f"give what it needs, or leave '{name}' out of metrics=[...]",
            )
        else:
            bench.gaps[name] = reason
    return bench


def _missing(name: str, settings: EvaluateConfig, critic: Metric | None) -> str | None:
    """Return what a metric lacks, or None."""
    if name == "critic":
        return None if critic is not None else "needs --critic DIR, a trained critic"
    facts = FACTS[name]
    for package in facts.packages:
        if importlib.util.find_spec(package) is None:
            terms = f" ({facts.licence})" if facts.licence else ""
            return f"needs the package {package}{terms}: pip install '.[{facts.extra}]'"
    given = settings.weights.model_dump()
    lacking = [weights for weights in facts.weights if given[weights.key] is None]
    if not lacking:
        return None
    return "needs " + " and ".join(
        f"weights.{w.key}={'ID' if w.hub_id else 'PATH'} ({w.wanted}, {w.source})" for w in lacking
    )


def _identities(name: str, settings: EvaluateConfig) -> dict[str, Identity]:
    given = settings.weights.model_dump()
    return {w.key: identify(w, given[w.key]) for w in FACTS[name].weights}


def measure_set(
    entries: Sequence[Entry],
    bench: Bench,
    kept: Path,
    progress: Progress,
    label: str,
) -> tuple[list[Row], Features]:
    """Return a row a clip, and the features of all clips by metric.

    Each clip is written to ``kept`` when it is done, and read back from there when its file has
    not changed since: an interrupted evaluation goes on.
    """
    rows: list[Row] = []
    found: dict[str, list[NDArray[np.float32]]] = {}
    for done, entry in enumerate(entries, start=1):
        row, features = _one(entry, bench, kept)
        rows.append(row)
        for name, part in features.items():
            found.setdefault(name, []).append(part)
        progress.update(f"measure {label}", done, len(entries))
    return rows, {name: np.concatenate(parts) for name, parts in found.items()}


def _one(entry: Entry, bench: Bench, kept: Path) -> tuple[Row, Features]:
    row: Row = {"name": entry.name, "condition": entry.condition, "key": entry.key}
    if entry.path is None:
        return {**row, "video": None, "error": entry.error}, {}
    digest = hash_file(entry.path)
    place, arrays = kept / f"{entry.name}.json", kept / f"{entry.name}.npz"
    if place.is_file() and (known := read_json(place)).get("sha256") == digest:
        with np.load(arrays) as file:
            return known, {name: file[name] for name in file.files}
    row |= {"video": str(entry.path.resolve()), "sha256": digest}
    try:
        clip = Clip.read(entry.path)
    except UsageError as error:
        return {**row, "error": error.message}, {}
    row |= _format(clip)
    row["values"], row["gaps"], features = measure_clip(clip, bench)
    _keep(arrays, features)
    write_json(place, row)
    return row, features


def measure_clip(
    clip: Clip, bench: Bench
) -> tuple[dict[str, float | None], dict[str, str], Features]:
    """Return a clip's values by column (None: a gap), the gaps' reasons, and its features."""
    values: dict[str, float | None] = {}
    gaps: dict[str, str] = {}
    features: Features = {}
    for name, metric in bench.metrics.items():
        try:
            measured = metric.measure(clip)
        except MissingExtra:
            raise
        except UsageError as error:
            gaps[name] = error.message
            measured = Measured()
        for column in FACTS[name].columns:
            value = measured.values.get(column.name, float("nan"))
            values[column.name] = float(value) if np.isfinite(value) else None
            if measured.values and not np.isfinite(value):
                gaps[column.name] = f"{column.label} is not defined on this clip"
        if measured.features is not None:
            if np.isfinite(measured.features).all():
                features[name] = np.asarray(measured.features, np.float32)
            else:
                gaps[name] = "the features of this clip are not finite"
    return values, gaps, features


def _format(clip: Clip) -> Row:
    frames, height, width = clip.frames.shape[:3]
    return {
        "frames": frames, "fps": round(clip.fps, 4), "width": width, "height": height,
        "seconds": round(frames / clip.fps, 3), "has_audio": clip.audio is not None,
    }  # fmt: skip


def _keep(path: Path, features: Features) -> None:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **features)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def facts_of(bench: Bench) -> dict[str, Any]:
    """Return what each metric is, for the record."""
    return {name: asdict(FACTS[name]) for name in [*bench.metrics, *bench.gaps]}
