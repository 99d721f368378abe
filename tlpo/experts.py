"""Expert adapters on disk: where they are, what they were trained on, and into a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from ft2.errors import UsageError
from ft2.files import open_tensors
from ft2.lora import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    install_experts,
    load_expert,
    read_adapter,
    read_adapter_config,
    remove_experts,
)
from ft2.pairs import DIMENSIONS, Dimension
from ft2.tlpo.cache import model_hash
from ft2.wan.model import TalkingModel

ExpertName = Dimension | Literal["mixed"]
"""What an expert was trained on: one dimension's pairs, or those of all three mixed."""

EXPERT_NAMES: Final[tuple[ExpertName, ...]] = (*DIMENSIONS, "mixed")
"""All names, in gate order."""


def find_adapter(path: str | Path) -> Path:
    """Return the adapter directory that a path means: itself, or ``adapter/`` of an expert run.

    Raises:
        UsageError: There is no adapter.
    """
    path = Path(path)
    for folder in (path, path / "adapter"):
        if (folder / ADAPTER_CONFIG).is_file():
            return folder
    raise UsageError(
        f"{path} holds no expert", hint="give the directory of a finished `ft2 tlpo train` run"
    )


def ordered(experts: Mapping[ExpertName, Path]) -> dict[ExpertName, Path]:
    """Return the experts' adapter directories in the order motion, lip, quality.

    Raises:
        UsageError: No expert, one without an adapter, or one that says it was trained on another
            dimension than it is given for.
    """
    if not experts:
        raise UsageError("no experts given", hint="set experts.motion=DIR and so on")
    found = {name: find_adapter(experts[name]) for name in EXPERT_NAMES if name in experts}
    for name, folder in found.items():
        read_adapter_config(folder)
        trained_on = _about(folder).get("dimension", name)
        if trained_on != name:
            raise UsageError(
                f"the {name} expert {folder} was trained on {trained_on} pairs",
                hint=f"set experts.{trained_on}={experts[name]}, and experts.{name} to its own run",
            )
    return found


def install_policy_experts(model: TalkingModel, experts: Mapping[ExpertName, Path]) -> None:
    """Put experts into a model, in the given order, in place of any that it carries.

    Raises:
        UsageError: The experts adapt different linears, or were trained on another base.
    """
    base = model_hash(model)
    configs, targets = [], set()
    for name, folder in experts.items():
        config, _ = read_adapter(folder)
        check_base(name, folder, base)
        configs.append(config)
        targets.add(tuple(sorted(config["target_modules"])))
    if len(targets) != 1:
        raise UsageError(
            "the experts adapt different linears", hint="train all with one lora.targets"
        )
    rank = max(int(config["r"]) for config in configs)
    alpha = next(float(c["lora_alpha"]) for c in configs if int(c["r"]) == rank)
    remove_experts(model.dit)
    install_experts(model.dit, sorted(targets.pop()), len(experts), rank, alpha)
    for index, folder in enumerate(experts.values()):
        load_expert(model.dit, index, folder)
    model.dit.requires_grad_(False)


def check_base(name: str, adapter: Path, base: str) -> None:
    """Refuse an adapter that says it was trained on another base than the one of a `model_hash`.

    Raises:
        UsageError: It does.
    """
    if adapter_base(adapter) not in (None, base):
        raise UsageError(
            f"the {name + ' ' if name else ''}expert {adapter} was trained on another base model",
            hint="load the base weights that the run's config.yaml names",
        )


def adapter_base(folder: Path) -> str | None:
    """Return the `model_hash` of the base that an adapter says it was trained on."""
    return _about(folder).get("base")


def _about(folder: Path) -> dict[str, str]:
    """Return what an adapter's file says of itself: its base, its dimension."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        return {}  # whoever reads the weights says so
    about: dict[str, str] = open_tensors(folder / ADAPTER_WEIGHTS).metadata() or {}
    return about


def expert_dimension(adapter: Path) -> ExpertName:
    """Return the dimension that an adapter directory says it was trained on.

    Raises:
        UsageError: It says none; it was not written by ft2.
    """
    read_adapter_config(adapter)
    name = _about(adapter).get("dimension")
    for dimension in EXPERT_NAMES:
        if name == dimension:
            return dimension
    raise UsageError(
        f"{adapter} does not say which dimension it was trained on",
        hint="give a finished run of `ft2 tlpo train`; a critic's adapter is no expert",
    )
