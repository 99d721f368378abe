"""Methods against each other on one dataset: equal budgets, several seeds, one table.

A method is trained anew for every seed. What is swept (``candidates``) is chosen on validation
conditions; the test conditions are sampled once, with the chosen one. Judging is the caller's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import torch

from ft2.config import Config
from ft2.errors import UsageError
from ft2.metrics import bootstrap_mean, bootstrap_paired
from ft2.pairs import DIMENSIONS, Dimension
from ft2.runs import Progress, Silent, read_json, write_json
from ft2.tlpo.config import ExpertConfig, FusionConfig
from ft2.tlpo.experts import ExpertName
from ft2.tlpo.gate import GateTable
from ft2.tlpo.policy import Policy, load_policy, save_policy
from ft2.tlpo.train import train_expert, train_fusion
from ft2.wan.model import TalkingModel

Rows = list[dict[str, Any]]
"""One object a clip: ``condition``, ``seed``, ``group`` (what resembles another) and scores."""

Changes = Mapping[str, object]
"""Config keys with dots, and their values."""

ConfigT = TypeVar("ConfigT", bound=Config)

BASE: Final = "base"
SPLITS: Final[tuple[Literal["validation"], Literal["test"]]] = ("validation", "test")


@dataclass(frozen=True)
class Method:
    """How a policy comes from the pairs."""

    kind: Literal["single", "merge", "switch", "gate", "average"]
    """``single``: one LoRA on all views; ``merge``: three experts at one strength; ``switch``: one
    expert for each interval of noise levels; ``gate``: learned; ``average``: the gate's mean."""
    changes: Changes = field(default_factory=dict)
    """What differs from the configs given."""
    candidates: Sequence[Changes] = ({},)
    """Further changes, of which the best on validation conditions is taken."""


def merges(*weights: float) -> tuple[Changes, ...]:
    """Return candidates of a merge: one for each strength."""
    return tuple({"weight": weight} for weight in weights)


METHODS: Final[dict[str, Method]] = {
    "dpo": Method("single"),
    "ipo": Method("single", {"dpo.loss": "ipo"}),
    "simpo": Method("single", {"dpo.loss": "simpo"}),
    "kto": Method("single", {"dpo.loss": "kto"}),
    "sdpo": Method("single", {"dpo.safeguard": 0.9}),
    "merge 1/3": Method("merge", {"weight": 1 / 3}),
    "merge 2/3": Method("merge", {"weight": 2 / 3}),
    "merge 1": Method("merge", {"weight": 1.0}),
    "merge tuned": Method("merge", {}, merges(1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0, 4 / 3)),
    "switch": Method("switch", {"edges": (1 / 3, 2 / 3)}),
    "gate": Method("gate"),
    "gate average": Method("average"),
    "gate without timestep": Method("gate", {"gate.input": "none"}),
    "gate without layer": Method("gate", {"gate.per_layer": False}),
}
"""What is compared. The switch gives little noise to quality, the middle to lip and much noise to
motion (AlignHuman, arXiv 2506.11144, has motion early and fidelity late)."""

_UNTRAINED = ("weight", "edges")


@dataclass(frozen=True)
class Bench:
    """What a comparison works with."""

    experts: Mapping[Dimension, ExpertConfig]
    fusion: FusionConfig
    model: TalkingModel
    score: Callable[[str, Policy | None, Literal["validation", "test"]], Rows]
    """Samples a policy under a name and judges the clips; None is the base."""
    output: Path
    columns: Sequence[str] = DIMENSIONS
    """Scores in the rows, more is better."""
    progress: Progress = field(default_factory=Silent)


def changed(config: ConfigT, changes: Changes) -> ConfigT:
    """Return a config with some keys (``dpo.beta``) set to other values, validated.

    Raises:
        UsageError: An unknown key or a wrong value.
    """
    data = config.model_dump()
    for key, value in changes.items():
        place = data
        *parents, last = key.split(".")
        for name in parents:
            place = place.get(name, {})
        if last not in place:
            raise UsageError(f"unknown key '{key}' in a method's changes")
        place[last] = value
    try:
        return type(config).model_validate(data)
    except ValueError as error:
        raise UsageError(f"a method's changes do not fit: {error}") from error


def compare(bench: Bench, methods: Mapping[str, Method], seeds: Sequence[int]) -> dict[str, Any]:
    """Train, sample and judge every method with every seed and return the table.

    What is done already is read back from ``bench.output``, so that a stopped comparison goes on.

    Returns:
        ``{"scores", "difference_to_base", "wins"}``: method to column to estimate with interval;
        ``chosen``: what the sweep took, by method and seed; ``seeds``; ``conditions``.

    Raises:
        UsageError: Fewer than one seed, or a method's changes do not fit the configs.
    """
    if not seeds:
        raise UsageError("no seeds to compare with", "give at least three")
    rows: dict[str, Rows] = {BASE: []}
    base = {split: bench.score(BASE, None, split) for split in SPLITS}
    chosen: dict[str, list[dict[str, Any]]] = {}
    for run, seed in enumerate(seeds):
        rows[BASE] += [{**row, "run": run} for row in base["test"]]
        done = len(methods) * run
        for name, method in methods.items():
            bench.progress.update(
                "compare", done, len(methods) * len(seeds), f"{name}, seed {seed}"
            )
            found, choice = _method_rows(bench, name, method, seed, base["validation"])
            rows.setdefault(name, []).extend({**row, "run": run} for row in found)
            chosen.setdefault(name, []).append(choice)
            done += 1
    table = summarise(rows, bench.columns)
    conditions = len({row["condition"] for row in base["test"]})
    return {**table, "chosen": chosen, "seeds": list(seeds), "conditions": conditions}


def _method_rows(
    bench: Bench, name: str, method: Method, seed: int, base: Rows
) -> tuple[Rows, dict[str, Any]]:
    """Return the test rows of a method and what its sweep found; kept in a file."""
    slug = name.replace(" ", "-").replace("/", "-")
    folder = bench.output / f"seed-{seed}"
    record = folder / f"{slug}.json"
    if record.is_file():
        kept = read_json(record)
        return kept["rows"], kept["choice"]
    tried: list[tuple[float, Changes, Path]] = []
    for number, candidate in enumerate(method.candidates):
        path = make_policy(bench, method, candidate, seed, folder / f"{slug}-{number}")
        gain = float("nan")
        if len(method.candidates) > 1:
            policy = load_policy(path, bench.model)
            label = f"{slug}-{seed}-{number}"
            gain = mean_gain(bench.score(label, policy, "validation"), base, bench.columns)
        tried.append((gain, candidate, path))
    best = max(tried, key=lambda item: (item[0] == item[0], item[0]))
    found = bench.score(f"{slug}-{seed}", load_policy(best[2], bench.model), "test")
    sweep = [{"changes": dict(c), "validation_gain": g} for g, c, _ in tried]
    choice = {"seed": seed, "changes": dict(best[1]), "sweep": sweep}
    write_json(record, {"rows": found, "choice": choice})
    return found, choice


def make_policy(bench: Bench, method: Method, candidate: Changes, seed: int, output: Path) -> Path:
    """Train or put together one policy and return its directory.

    The single LoRA trains as many steps as the three experts and the gate together.
    """
    changes = {**method.changes, **candidate}
    trained = {key: value for key, value in changes.items() if key not in _UNTRAINED}
    trained["loop.seed"] = seed
    if method.kind == "single":
        first = next(iter(bench.experts.values()))
        steps = sum(c.loop.num_steps for c in bench.experts.values()) + bench.fusion.loop.num_steps
        single = {"dimension": "mixed", "mask.kind": "none", "loop.num_steps": steps}
        config = changed(first, {**single, **trained})
        train_expert(config, output, resume=True, progress=bench.progress, model=bench.model)
        return output
    experts = seed_experts(bench, seed)
    if method.kind == "merge":
        save_policy(output, experts, _number(changes, "weight"))
    elif method.kind == "switch":
        save_policy(output, experts, switch_table(changes["edges"], experts, bench.model))
    elif method.kind == "gate":
        fusion = changed(bench.fusion, {**trained, "experts": dict(experts)})
        train_fusion(fusion, output, resume=True, progress=bench.progress, model=bench.model)
    else:
        learned = make_policy(bench, METHODS["gate"], {}, seed, output.parent / "gate-0")
        average = read_json(learned / "policy" / "policy.json")["average"]
        save_policy(output, experts, GateTable(torch.zeros(0), torch.tensor([average])))
    return output


def seed_experts(bench: Bench, seed: int) -> dict[ExpertName, Path]:
    """Return the three experts of a seed, trained if they are not there."""
    found: dict[ExpertName, Path] = {}
    for dimension, config in bench.experts.items():
        output = bench.output / f"seed-{seed}" / f"expert-{dimension}"
        own = changed(config, {"loop.seed": seed})
        train_expert(own, output, resume=True, progress=bench.progress, model=bench.model)
        found[dimension] = output
    return found


def switch_table(
    edges: object, experts: Mapping[ExpertName, Path], model: TalkingModel
) -> GateTable:
    """Return the hard switch: from little to much noise quality, lip, motion, each at weight 1."""
    assert isinstance(edges, Sequence)
    order = [name for name in ("quality", "lip", "motion") if name in experts]
    names = [name for name in DIMENSIONS if name in experts]
    if len(edges) != len(order) - 1:
        raise UsageError(f"{len(edges)} edges for a switch of {len(order)} experts")
    rows = [[float(name == active) for name in names] for active in order]
    table = torch.tensor(rows)[:, None].expand(-1, model.num_layers, -1)
    return GateTable(torch.tensor(list(edges)), table)


def _number(changes: Changes, key: str) -> float:
    value = changes[key]
    assert isinstance(value, int | float)
    return float(value)


def mean_gain(rows: Rows, base: Rows, columns: Sequence[str]) -> float:
    """Return the mean difference to the base, each column in units of the base's deviation."""
    by_clip = {(row["condition"], row["seed"]): row for row in base}
    gains = []
    for column in columns:
        pairs = [(row[column], by_clip[row["condition"], row["seed"]][column]) for row in rows]
        values = np.array([(a, b) for a, b in pairs if a is not None and b is not None], float)
        gains.append((values[:, 0] - values[:, 1]).mean() / max(values[:, 1].std(), 1e-9))
    return float(np.mean(gains))


def summarise(rows: Mapping[str, Rows], columns: Sequence[str]) -> dict[str, Any]:
    """Return scores, paired differences to the base and win rates, with bootstrap intervals.

    Intervals are over groups (such as utterances), with all seeds of a group drawn together. A
    win is a clip that scores above the base's with the same condition and noise; ties are half.
    """
    by_clip = {(r["run"], r["condition"], r["seed"]): r for r in rows[BASE]}
    found: dict[str, dict[str, Any]] = {"scores": {}, "difference_to_base": {}, "wins": {}}
    for name, own in rows.items():
        groups = [row["group"] for row in own]
        base = [by_clip[row["run"], row["condition"], row["seed"]] for row in own]
        for column in columns:
            ours, theirs = ([_value(r, column) for r in part] for part in (own, base))
            if not np.isfinite(ours).any():
                continue
            cells = {"scores": bootstrap_mean(ours, groups)}
            if name != BASE:
                cells["difference_to_base"] = bootstrap_paired(ours, theirs, groups)
                gap = np.array(ours) - np.array(theirs)
                won = np.where(np.isfinite(gap), (gap > 0) + 0.5 * (gap == 0), np.nan)
                cells["wins"] = bootstrap_mean(won.tolist(), groups)
            for part, estimate in cells.items():
                found[part].setdefault(name, {})[column] = estimate.to_dict()
    return found


def _value(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    return float("nan") if value is None else float(value)


def markdown(table: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return the table for people: difference to the base with 95 % intervals, and win rates."""
    head = ["method", *columns, *(f"wins {column}" for column in columns)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    first = [_cell(table["scores"][BASE].get(c), signed=False) for c in columns]
    lines.append(f"| {BASE} (score) | {' | '.join([*first, *([''] * len(columns))])} |")
    for name, cells in table["difference_to_base"].items():
        shown = [_cell(cells.get(column)) for column in columns]
        shown += [_cell(table["wins"][name].get(column), signed=False) for column in columns]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    note = (
        f"\nDifference to the base, mean over {len(table['seeds'])} training seeds and "
        f"{table['conditions']} held-out conditions; 95 % bootstrap intervals over groups.\n"
    )
    return "\n".join(lines) + "\n" + note


def _cell(estimate: Mapping[str, Any] | None, signed: bool = True) -> str:
    if estimate is None:
        return ""
    value = f"{estimate['value']:+.3f}" if signed else f"{estimate['value']:.3f}"
    if estimate["low"] is None:
        return value
    return f"{value} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
