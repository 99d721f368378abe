"""The configs of a comparison's trials, and whether every candidate fits before anything runs."""

from collections.abc import Mapping, Sequence
from typing import Final

from ft2.errors import UsageError
from ft2.pairs import Dimension, read_table
from ft2.tlpo.config import ExpertConfig, FusionConfig, StageConfig
from ft2.tlpo.methods import Changes, Method, changed, switch_edges
from ft2.tlpo.views import read_view

STEPS: Final = "loop.num_steps"
_OWN_KEYS: Final[dict[str, set[str]]] = {"merge": {"weight"}, "switch": {"edges"}, "average": set()}
"""What candidates of methods that train nothing may change."""

Experts = Mapping[Dimension, ExpertConfig]


def seeded(changes: Changes, seed: int) -> dict[str, object]:
    """Return changes with those of a training seed."""
    return {**changes, "loop.seed": seed}


def budget_of(experts: Experts, fusion: FusionConfig) -> int:
    """Return the steps of the experts and the gate together: what one LoRA may train at most."""
    return sum(config.loop.num_steps for config in experts.values()) + fusion.loop.num_steps


def single_config(experts: Experts, name: str, changes: Changes, budget: int) -> ExpertConfig:
    """Return the config of one LoRA on the pairs of all dimensions.

    Raises:
        UsageError: The changes do not fit, or it has more steps than the budget.
    """
    single = {"dimension": "mixed", "mask.kind": "none", STEPS: budget}
    config = changed(next(iter(experts.values())), {**single, **changes})
    if config.loop.num_steps > budget:
        raise UsageError(
            f"'{name}' with {config.loop.num_steps} steps exceeds the budget, {budget}"
        )
    return config


def expert_config(given: ExpertConfig, name: str, changes: Changes) -> ExpertConfig:
    """Return the config of one expert, with the steps of the given one at most.

    Raises:
        UsageError: The changes do not fit, or it has more steps.
    """
    config = changed(given, changes)
    if config.loop.num_steps > given.loop.num_steps:
        raise UsageError(
            f"'{name}' with {config.loop.num_steps} steps exceeds {given.loop.num_steps}"
        )
    return config


def check_trials(
    experts: Experts,
    fusion: FusionConfig,
    methods: Mapping[str, Method],
    candidates: Mapping[Dimension, Sequence[Changes]],
) -> None:
    """Apply every candidate to its config and read every view, so that nothing fails later.

    Raises:
        UsageError: A candidate does not fit, an average has no gate before it, or a view has too
            few pairs.
    """
    for dimension, sets in candidates.items():
        for changes in sets:
            _named(f"expert-{dimension}", changes, experts[dimension], experts, fusion)
    views: dict[str, StageConfig] = {}
    for number, (name, method) in enumerate(methods.items()):
        for candidate in range(len(method.candidates)):
            views |= _views(_named(name, method.of(candidate), method, experts, fusion), experts)
        if method.kind == "average" and "gate" not in list(methods)[:number]:
            raise UsageError(f"'{name}' needs the method 'gate' before it", "add gate to methods")
    for config in views.values():
        assert isinstance(config, ExpertConfig | FusionConfig)
        read_view(config, config.view)


def _named(
    name: str, changes: Changes, kind: Method | ExpertConfig, experts: Experts, fusion: FusionConfig
) -> StageConfig | None:
    """Return the config of one candidate (None trains nothing), naming it where it does not fit."""
    try:
        if isinstance(kind, ExpertConfig):
            return expert_config(kind, name, changes)
        if kind.kind == "single":
            return single_config(experts, name, changes, budget_of(experts, fusion))
        if kind.kind == "gate":
            return changed(fusion, changes)
        unknown = sorted(set(changes) - _OWN_KEYS.get(kind.kind, set()))
        if unknown:
            raise UsageError(f"unknown key '{unknown[0]}' in a method's changes")
        if kind.kind == "merge":
            merge_weight(changes)
        if kind.kind == "switch":
            switch_edges(changes, len(experts))
    except UsageError as error:
        raise UsageError(f"sweep of '{name}': {error.message}", error.hint) from error
    return None


def _views(config: StageConfig | None, experts: Experts) -> dict[str, StageConfig]:
    """Return the configs whose views a trial reads, by view: its own and the experts'."""
    if isinstance(config, ExpertConfig):
        return {config.view: config}
    found: dict[str, StageConfig] = dict(experts.items())
    return found if not isinstance(config, FusionConfig) else {**found, config.view: config}


def merge_weight(changes: Changes) -> float:
    """Return a merge's strength.

    Raises:
        UsageError: It is no number.
    """
    weight = changes.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UsageError(f"a merge takes a number as weight, got {weight!r}")
    return float(weight)


def check_conditions(dataset: Mapping[str, set[str]], trained: set[str]) -> None:
    """Refuse conditions that were trained on.

    Args:
        dataset: Condition ids by split.
        trained: Those of the dataset's clips.

    Raises:
        UsageError: One of the former is among the latter.
    """
    for split, ids in dataset.items():
        shared = sorted(ids & trained)
        if shared:
            raise UsageError(
                f"{len(shared)} conditions of {split} are also in the dataset: {shared[0]}",
                "nothing is measured on what was trained on: build others, with another split",
            )


def trained_conditions(config: StageConfig) -> set[str]:
    """Return the conditions of all clips that a stage may learn from."""
    return set(read_table(config.dataset, "clips", "train")["condition_id"].to_pylist())
