"""What a comparison trains: the policy of one method with one seed, and the experts it rests on."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, Dimension
from ft2.runs import Progress, RunDir, Silent, read_json
from ft2.tlpo.compare_config import (
    STEPS,
    budget_of,
    expert_config,
    merge_weight,
    seeded,
    single_config,
)
from ft2.tlpo.compare_table import Rows
from ft2.tlpo.config import ExpertConfig, FusionConfig
from ft2.tlpo.experts import ExpertName
from ft2.tlpo.gate import GateTable
from ft2.tlpo.methods import Changes, Method, changed, switch_table
from ft2.tlpo.policy import Policy
from ft2.tlpo.policy_files import save_policy
from ft2.tlpo.train import train_expert, train_fusion
from ft2.wan.model import TalkingModel

Chosen = Mapping[str, Mapping[str, Any]]
"""What sweeps took so far, by method: ``candidate`` is its number."""


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
    candidates: Mapping[Dimension, Sequence[Changes]] = field(default_factory=dict)
    """Further changes of the experts' configs, of which the best on validation are taken."""

    @property
    def budget(self) -> int:
        """Steps of the three experts and the gate together: what one LoRA may train at most."""
        return budget_of(self.experts, self.fusion)


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


def make_policy(bench: Bench, trial: Trial, chosen: Chosen) -> Path:
    """Train or put together one policy and return its directory.

    Args:
        bench: Configs and model.
        trial: What to make.
        chosen: What sweeps took so far; the average of a gate is that of the chosen gate.
    """
    changes, output = trial.method.of(trial.candidate), bench.output / trial.folder
    if trial.method.kind == "single":
        return _train_single(bench, trial, output)
    if trial.method.kind == "expert":
        return _train_own(bench, trial, output)
    experts = seed_experts(bench, trial.seed, chosen)
    if trial.method.kind == "merge":
        save_policy(output, experts, merge_weight(changes))
    elif trial.method.kind == "switch":
        save_policy(output, experts, switch_table(changes["edges"], experts, bench.model))
    elif trial.method.kind == "gate":
        own = {**seeded(changes, trial.seed), "experts": dict(experts)}
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


def _train_single(bench: Bench, trial: Trial, output: Path) -> Path:
    """Train one LoRA on the pairs of all dimensions, for the whole budget or a candidate's steps.

    A candidate that differs from an earlier one only in having more steps goes on from there:
    training is the same to the bit whether it stops in between or not.
    """
    changes = seeded(trial.method.of(trial.candidate), trial.seed)
    config = single_config(bench.experts, trial.name, changes, bench.budget)
    steps = config.loop.num_steps
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


def expert_method(bench: Bench, dimension: Dimension) -> Method:
    """Return the training of one expert as a method, with its candidates."""
    return Method("expert", {"dimension": dimension}, bench.candidates.get(dimension, ({},)))


def seed_experts(bench: Bench, seed: int, chosen: Chosen) -> dict[ExpertName, Path]:
    """Return the three experts of a seed as the sweep chose them, trained if they are not there."""
    found: dict[ExpertName, Path] = {}
    for dimension in bench.experts:
        name = f"expert-{dimension}"
        number = chosen[name]["candidate"] if name in chosen else 0
        trial = Trial(name, expert_method(bench, dimension), number, seed)
        found[dimension] = make_policy(bench, trial, chosen)
    return found


def _train_own(bench: Bench, trial: Trial, output: Path) -> Path:
    """Train one expert, for the steps of its config at most."""
    changes = trial.method.of(trial.candidate)
    given = next(c for c in bench.experts.values() if c.dimension == changes["dimension"])
    config = expert_config(given, trial.name, seeded(changes, trial.seed))
    train_expert(config, output, resume=True, progress=bench.progress, model=bench.model)
    return output
