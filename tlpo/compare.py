"""Methods against each other on one dataset: equal budgets, several seeds, one table.

A method is trained anew for every seed. What is swept (a method's candidates) is chosen with the
first seed on validation conditions and kept for the others; the test conditions are sampled once
a seed, with the chosen one. Judging is the caller's.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch

from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, Dimension
from ft2.runs import Progress, RunDir, Silent, read_json, write_json
from ft2.tlpo.compare_table import BASE, Rows, mean_gain, summarise
from ft2.tlpo.config import ExpertConfig, FusionConfig
from ft2.tlpo.experts import ExpertName
from ft2.tlpo.gate import GateTable
from ft2.tlpo.methods import Changes, Method, changed, switch_table
from ft2.tlpo.policy import Policy, load_policy, save_policy
from ft2.tlpo.train import train_expert, train_fusion
from ft2.wan.model import TalkingModel

SPLITS: Final[tuple[Literal["validation"], Literal["test"]]] = ("validation", "test")
STEPS: Final = "loop.num_steps"
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
    """Scores in the rows that choose among candidates, more is better."""
    reported: Sequence[str] = ()
    """Further scores in the rows of test conditions."""
    progress: Progress = field(default_factory=Silent)

    @property
    def budget(self) -> int:
        """Steps of the three experts and the gate together: what one LoRA may train at most."""
        steps = sum(config.loop.num_steps for config in self.experts.values())
        return steps + self.fusion.loop.num_steps


@dataclass(frozen=True)
class Trial:
    """One training of a method."""

    name: str
    method: Method
    candidate: int
    seed: int

    @property
    def slug(self) -> str:
        """The method's name as a file name."""
        return self.name.replace(" ", "-").replace("/", "-")

    @property
    def folder(self) -> str:
        """Where its policy is, relative to the comparison's output."""
        return f"seed-{self.seed}/{self.slug}-{self.candidate}"


def compare(bench: Bench, methods: Mapping[str, Method], seeds: Sequence[int]) -> dict[str, Any]:
    """Train, sample and judge every method with every seed and return the table.

    What is done already is read back from ``bench.output``, so that a stopped comparison goes on.

    Returns:
        ``{"scores", "difference_to_base", "wins"}``: method to column to estimate with interval;
        ``chosen``: what the sweep of the first seed took, by method; ``seeds``; ``conditions``.

    Raises:
        UsageError: Fewer than one seed, or a method's changes do not fit the configs.
    """
    if not seeds:
        raise UsageError("no seeds to compare with", "give at least three")
    rows: dict[str, Rows] = {BASE: []}
    base = {split: bench.score(BASE, None, split) for split in SPLITS}
    chosen: dict[str, dict[str, Any]] = {}
    for run, seed in enumerate(seeds):
        rows[BASE] += [{**row, "run": run} for row in base["test"]]
        for place, (name, method) in enumerate(methods.items()):
            done, total = len(methods) * run + place, len(methods) * len(seeds)
            bench.progress.update("compare", done, total, f"{name}, seed {seed}")
            if not run:
                chosen[name] = choose(bench, name, method, seed, base["validation"], chosen)
            trial = Trial(name, method, chosen[name]["candidate"], seed)
            found = _test_rows(bench, trial, chosen)
            rows.setdefault(name, []).extend({**row, "run": run} for row in found)
    table = summarise(rows, (*bench.columns, *bench.reported))
    conditions = len({row["condition"] for row in base["test"]})
    return {**table, "chosen": chosen, "seeds": list(seeds), "conditions": conditions}


def choose(
    bench: Bench,
    name: str,
    method: Method,
    seed: int,
    base: Rows,
    chosen: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the best candidate of a method on validation conditions, and the whole sweep.

    Returns:
        ``candidate`` (its number), ``changes``, and ``sweep``: every candidate's changes and mean
        gain over the base; kept in a file. A method of one candidate is not sampled.
    """
    record = bench.output / "sweeps" / f"{Trial(name, method, 0, seed).slug}.json"
    if record.is_file():
        kept: dict[str, Any] = read_json(record)
        return kept
    sweep: list[dict[str, Any]] = []
    for number, changes in enumerate(method.candidates):
        gain = float("nan")
        if len(method.candidates) > 1:
            trial = Trial(name, method, number, seed)
            policy = load_policy(make_policy(bench, trial, chosen), bench.model)
            rows = bench.score(f"{trial.slug}-{seed}-{number}", policy, "validation")
            gain = mean_gain(rows, base, bench.columns)
        sweep.append({"changes": dict(changes), "validation_gain": gain})
    gains = [entry["validation_gain"] for entry in sweep]
    best = max(range(len(gains)), key=lambda i: (gains[i] == gains[i], gains[i]))
    found = {"candidate": best, "seed": seed, "changes": sweep[best]["changes"], "sweep": sweep}
    write_json(record, found)
    return found


def _test_rows(bench: Bench, trial: Trial, chosen: Mapping[str, Mapping[str, Any]]) -> Rows:
    record = bench.output / f"seed-{trial.seed}" / f"{trial.slug}.json"
    if record.is_file():
        kept: Rows = read_json(record)
        return kept
    policy = load_policy(make_policy(bench, trial, chosen), bench.model)
    found = bench.score(f"{trial.slug}-{trial.seed}", policy, "test")
    write_json(record, found)
    return found


def make_policy(bench: Bench, trial: Trial, chosen: Mapping[str, Mapping[str, Any]]) -> Path:
    """Train or put together one policy and return its directory.

    Args:
        bench: Configs and model.
        trial: What to make.
        chosen: What sweeps took so far; the average of a gate is that of the chosen gate.
    """
    changes, output = trial.method.of(trial.candidate), bench.output / trial.folder
    if trial.method.kind == "single":
        return _train_single(bench, trial, output)
    experts = seed_experts(bench, trial.seed)
    if trial.method.kind == "merge":
        save_policy(output, experts, _number(changes, "weight"))
    elif trial.method.kind == "switch":
        save_policy(output, experts, switch_table(changes["edges"], experts, bench.model))
    elif trial.method.kind == "gate":
        own = {**_trained(changes, trial.seed), "experts": dict(experts)}
        fusion = changed(bench.fusion, own)
        train_fusion(fusion, output, resume=True, progress=bench.progress, model=bench.model)
    else:
        number = chosen["gate"]["candidate"] if "gate" in chosen else 0
        gate = bench.output / Trial("gate", trial.method, number, trial.seed).folder / "policy"
        if not gate.is_dir():
            raise UsageError("'gate average' needs the method 'gate' before it")
        average = read_json(gate / "policy.json")["average"]
        save_policy(output, experts, GateTable(torch.zeros(0), torch.tensor([average])))
    return output


def _trained(changes: Changes, seed: int) -> dict[str, object]:
    kept = {key: value for key, value in changes.items() if key not in _UNTRAINED}
    return {**kept, "loop.seed": seed}


def _train_single(bench: Bench, trial: Trial, output: Path) -> Path:
    """Train one LoRA on the pairs of all dimensions, for the whole budget or a candidate's steps.

    A candidate that differs from an earlier one only in having more steps goes on from there:
    training is the same to the bit whether it stops in between or not.
    """
    changes = _trained(trial.method.of(trial.candidate), trial.seed)
    single = {"dimension": "mixed", "mask.kind": "none", STEPS: bench.budget}
    config = changed(next(iter(bench.experts.values())), {**single, **changes})
    steps = config.loop.num_steps
    if steps > bench.budget:
        raise UsageError(f"'{trial.name}' with {steps} steps exceeds the budget, {bench.budget}")
    earlier = [
        number
        for number in range(trial.candidate)
        if _apart_from_steps(trial.method.of(number))
        == _apart_from_steps(trial.method.of(trial.candidate))
    ]
    if earlier and not (output / "config.yaml").exists():
        _go_on(bench.output / Trial(trial.name, trial.method, earlier[-1], trial.seed).folder,
               output, config, steps)  # fmt: skip
    train_expert(config, output, resume=True, progress=bench.progress, model=bench.model)
    return output


def _apart_from_steps(changes: Changes) -> dict[str, object]:
    return {key: value for key, value in changes.items() if key != STEPS}


def _go_on(earlier: Path, output: Path, config: ExpertConfig, steps: int) -> None:
    """Start a run from another's last checkpoint, if that has fewer steps."""
    if not (earlier / "result.json").is_file():
        return
    latest = RunDir(earlier).latest()
    if latest is None or latest[0] >= steps:
        return
    RunDir.open(output, config=config, resume=True)
    for name in ("metrics.jsonl", "held_out_start.json"):
        shutil.copyfile(earlier / name, output / name)
    shutil.copytree(earlier / "checkpoints", output / "checkpoints", dirs_exist_ok=True)


def seed_experts(bench: Bench, seed: int) -> dict[ExpertName, Path]:
    """Return the three experts of a seed, trained if they are not there."""
    found: dict[ExpertName, Path] = {}
    for dimension, config in bench.experts.items():
        output = bench.output / f"seed-{seed}" / f"expert-{dimension}"
        own = changed(config, {"loop.seed": seed})
        train_expert(own, output, resume=True, progress=bench.progress, model=bench.model)
        found[dimension] = output
    return found


def _number(changes: Changes, key: str) -> float:
    value = changes[key]
    assert isinstance(value, int | float)
    return float(value)
