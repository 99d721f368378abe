"""Policies: experts and the weights with which they act, as files and on a model.

A policy directory holds ``policy.json``, ``gate.safetensors`` (a learned gate) and
``experts/<dimension>/`` (PEFT adapters). A learned gate depends on the timestep alone, so the
table of its weights over steps and layers can be looked at, and computed before sampling.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ft2.errors import UsageError
from ft2.lora import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FusedLinear,
    fused_linears,
    install_experts,
    load_expert,
    read_adapter,
    remove_experts,
)
from ft2.pairs import DIMENSIONS, Dimension
from ft2.runs import load_tensors, read_json, save_tensors, write_json
from ft2.tlpo.cache import model_hash
from ft2.tlpo.gate import FusionGate, GateInput, constant_gate, timestep_features
from ft2.wan.model import TalkingModel

POLICY_FILE = "policy.json"
GATE_FILE = "gate.safetensors"


class Policy:
    """Experts installed in a model, and how strongly each acts.

    Attributes:
        experts: The dimensions of the experts, in gate order.
    """

    def __init__(
        self,
        model: TalkingModel,
        experts: Sequence[Dimension],
        gate: FusionGate | Sequence[float],
        gate_input: GateInput = "embedding",
    ) -> None:
        """Join experts that are already installed in ``model`` with their weights."""
        self.experts = tuple(experts)
        self._model = model
        self._gate = gate
        self._input: GateInput = gate_input
        self._marker = _first_layer(model)

    @property
    def learned(self) -> bool:
        """Whether the weights come from a trained gate rather than being constant."""
        return isinstance(self._gate, FusionGate)

    def gate(self, sigma: Tensor) -> Tensor:
        """Return the expert weights [B, layers, K] at noise levels sigma [B].

        Raises:
            UsageError: Another policy was loaded into the model since.
        """
        if _first_layer(self._model) is not self._marker:
            raise UsageError(
                "another policy was loaded into this model since",
                hint="load the policy again, or use one model for each",
            )
        if isinstance(self._gate, FusionGate):
            with torch.no_grad():
                tau = timestep_features(self._model.dit, sigma, self._input)
                return self._gate.to(sigma.device)(tau)
        weights = constant_gate(len(sigma), self._model.num_layers, self._gate)
        return weights.to(sigma.device)

    def constant(self, weights: float | Sequence[float]) -> "Policy":
        """Return the same installed experts with constant weights (one number for all, or K)."""
        return Policy(self._model, self.experts, _per_expert(weights, self.experts))

    def only(self, dimension: Dimension) -> "Policy":
        """Return one installed expert alone, at weight 1.

        Raises:
            UsageError: The policy has no such expert.
        """
        if dimension not in self.experts:
            raise UsageError(f"no {dimension} expert among {', '.join(self.experts)}")
        return self.constant([float(name == dimension) for name in self.experts])

    def table(self, sigmas: Tensor) -> Tensor:
        """Return the weights [steps, layers, K] at some noise levels, for the heat map."""
        return self.gate(sigmas).cpu()


def _first_layer(model: TalkingModel) -> FusedLinear | None:
    return next((layer for _, layer in fused_linears(model.dit)), None)


def _per_expert(weights: float | Sequence[float], experts: Sequence[str]) -> tuple[float, ...]:
    values = (weights,) * len(experts) if isinstance(weights, int | float) else tuple(weights)
    if len(values) != len(experts):
        raise UsageError(f"{len(values)} weights for {len(experts)} experts")
    return tuple(float(value) for value in values)


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


def ordered(experts: Mapping[Dimension, Path]) -> dict[Dimension, Path]:
    """Return the experts' adapter directories in the order motion, lip, quality.

    Raises:
        UsageError: No expert, or one without an adapter.
    """
    if not experts:
        raise UsageError("no experts given", hint="set experts.motion=DIR and so on")
    return {name: find_adapter(experts[name]) for name in DIMENSIONS if name in experts}


def install_policy_experts(model: TalkingModel, experts: Mapping[Dimension, Path]) -> None:
    """Put experts into a model, in the given order, in place of any that it carries.

    Raises:
        UsageError: The experts adapt different linears, or were trained on another base.
    """
    base = model_hash(model)
    configs, targets = [], set()
    for name, folder in experts.items():
        config, _ = read_adapter(folder)
        trained_on = _adapter_base(folder)
        if trained_on not in (None, base):
            raise UsageError(
                f"the {name} expert {folder} was trained on another base model",
                hint="load the base weights that the run's config.yaml names",
            )
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


def _adapter_base(folder: Path) -> str | None:
    return load_tensors(folder / ADAPTER_WEIGHTS)[1].get("base")


def expert_dimension(adapter: Path) -> Dimension:
    """Return the dimension that an adapter directory says it was trained on.

    Raises:
        UsageError: It says none; it was not written by ft2.
    """
    name = load_tensors(adapter / ADAPTER_WEIGHTS)[1].get("dimension")
    for dimension in DIMENSIONS:
        if name == dimension:
            return dimension
    raise UsageError(f"{adapter} does not say which dimension it was trained on")


def save_policy(
    directory: Path,
    experts: Mapping[Dimension, Path],
    gate: FusionGate | float | Sequence[float],
    gate_input: GateInput = "embedding",
    base: str | None = None,
) -> None:
    """Write a policy directory; the experts' files are copied, so it stands alone.

    Args:
        directory: Made if absent.
        experts: Run or adapter directories by dimension.
        gate: A learned gate, or constant weights.
        gate_input: What the gate reads.
        base: `model_hash` of the base, for the record.
    """
    found = ordered(experts)
    record: dict[str, Any] = {"version": 1, "experts": list(found), "base": base}
    for name, folder in found.items():
        target = directory / "experts" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(folder / file, target / file)
    if isinstance(gate, FusionGate):
        save_tensors(directory / GATE_FILE, dict(gate.state_dict()))
        record["gate"] = {"form": "figure", "input": gate_input}
    else:
        record["gate"] = {"form": "constant", "weights": _per_expert(gate, list(found))}
    write_json(directory / POLICY_FILE, record)


def load_policy(path: str | Path, model: TalkingModel) -> Policy:
    """Install a policy into a model (experts that it carries are replaced) and return it.

    Args:
        path: A policy directory, a fusion run (its ``policy/``), an expert run or an adapter
            directory (that expert alone, at weight 1).
        model: The base that the experts were trained on.

    Raises:
        UsageError: The path holds none of these, or does not fit the model.
    """
    path = Path(path)
    for folder in (path, path / "policy"):
        if (folder / POLICY_FILE).is_file():
            return _load_policy_dir(folder, model)
    adapter = find_adapter(path)
    name = expert_dimension(adapter)
    install_policy_experts(model, {name: adapter})
    return Policy(model, [name], [1.0])


def _load_policy_dir(folder: Path, model: TalkingModel) -> Policy:
    record = read_json(folder / POLICY_FILE)
    names: list[Dimension] = record["experts"]
    install_policy_experts(model, {name: folder / "experts" / name for name in names})
    form = record["gate"]
    if form["form"] == "constant":
        return Policy(model, names, form["weights"])
    tensors, _ = load_tensors(folder / GATE_FILE)
    layers, count, width = tensors["weight"].shape
    if (layers, count) != (model.num_layers, len(names)):
        raise UsageError(f"{folder} has a gate for {layers} layers and {count} experts")
    gate = FusionGate(layers, count, width)
    gate.load_state_dict(tensors)
    return Policy(model, names, gate.requires_grad_(False), form["input"])


def static_policy(
    experts: Mapping[Dimension, Path], weights: float | Sequence[float], model: TalkingModel
) -> Policy:
    """Install experts with constant weights, such as 1/3, 2/3 or 1 each, and return the policy."""
    found = ordered(experts)
    install_policy_experts(model, found)
    return Policy(model, list(found), _per_expert(weights, list(found)))
