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
from ft2.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FusedLinear, fused_linears
from ft2.runs import hash_file, load_tensors, read_json, save_tensors, write_json
from ft2.tlpo.experts import (
    EXPERT_NAMES,
    ExpertName,
    adapter_base,
    expert_dimension,
    find_adapter,
    install_policy_experts,
    ordered,
)
from ft2.tlpo.gate import (
    FusionGate,
    GateInput,
    GateTable,
    constant_gate,
    make_gate,
    timestep_features,
)
from ft2.tlpo.options import GateConfig
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
        experts: Sequence[ExpertName],
        gate: FusionGate | GateTable | Sequence[float],
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
        """Return the expert weights [B, layers, K] (or [B, layers, slots, K]) at sigma [B].

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
        if isinstance(self._gate, GateTable):
            return self._gate.to(sigma.device)(sigma)
        weights = constant_gate(len(sigma), self._model.num_layers, self._gate)
        return weights.to(sigma.device)

    def constant(self, weights: float | Sequence[float]) -> "Policy":
        """Return the same installed experts with constant weights (one number for all, or K)."""
        return Policy(self._model, self.experts, _per_expert(weights, self.experts))

    def only(self, dimension: ExpertName) -> "Policy":
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


def save_policy(
    directory: Path,
    experts: Mapping[ExpertName, Path],
    gate: FusionGate | GateTable | float | Sequence[float],
    gate_config: GateConfig | None = None,
    base: str | None = None,
    average: Sequence[Sequence[float]] | None = None,
) -> None:
    """Write a policy directory; the experts' files are copied, so it stands alone.

    Args:
        directory: Made if absent.
        experts: Run or adapter directories by dimension.
        gate: A learned gate, a table over the noise level, or constant weights.
        gate_config: How the learned gate was made; None is the default.
        base: `model_hash` of the base, for the record; None takes the experts' own.
        average: Mean over noise levels of a learned gate's weights, [layers][K], for export.
    """
    found = ordered(experts)
    record: dict[str, Any] = {"version": 1, "experts": list(found)}
    hashes: dict[str, str] = {}
    for name, folder in found.items():
        target = directory / "experts" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(folder / file, target / file)
        hashes[name] = hash_file(target / ADAPTER_WEIGHTS)
        base = base or adapter_base(folder)
    record |= {"base": base, "sha256": hashes}
    if isinstance(gate, FusionGate | GateTable):
        save_tensors(directory / GATE_FILE, dict(gate.state_dict()))
        hashes["gate"] = hash_file(directory / GATE_FILE)
    if isinstance(gate, FusionGate):
        config = gate_config or GateConfig()
        record["gate"] = config.model_dump(mode="json", exclude={"bias_init", "train_bias"})
        record["gate"] |= {"layers": gate.num_layers, "slots": gate.slots}
        record["average"] = average
    elif isinstance(gate, GateTable):
        record["gate"] = {"form": "table"}
        record["average"] = gate.weights.mean(0).tolist()
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
    folder = find_policy(Path(path))
    if folder is not None:
        return _load_policy_dir(folder, model)
    adapter = find_adapter(Path(path))
    name = expert_dimension(adapter)
    install_policy_experts(model, {name: adapter})
    return Policy(model, [name], [1.0])


def find_policy(path: Path) -> Path | None:
    """Return the policy directory that a path names, or None if it names one expert's adapter.

    Raises:
        UsageError: it names neither.
    """
    for folder in (path, path / "policy"):
        if (folder / POLICY_FILE).is_file():
            return folder
    find_adapter(path)
    return None


def read_policy(folder: Path) -> dict[str, Any]:
    """Return the record of a policy directory: ``experts``, ``gate``, ``base``, ``sha256``, ...

    Raises:
        UsageError: It is no record of a policy.
    """
    record = read_json(folder / POLICY_FILE)
    gate = record.get("gate") if isinstance(record, dict) else None
    experts = record.get("experts") if isinstance(record, dict) else None
    known = isinstance(experts, list) and experts and set(experts) <= set(EXPERT_NAMES)
    if not known or not isinstance(gate, dict) or "form" not in gate:
        raise UsageError(
            f"{folder / POLICY_FILE} does not say which experts it has and how they act",
            hint="write the policy anew: ft2 tlpo train NAME/fusion, or ft2 tlpo merge",
        )
    whole: dict[str, Any] = record
    return whole


def _load_policy_dir(folder: Path, model: TalkingModel) -> Policy:
    record = read_policy(folder)
    names: list[ExpertName] = record["experts"]
    check_files(folder, record.get("sha256", {}))
    install_policy_experts(model, {name: folder / "experts" / name for name in names})
    form = record["gate"]
    if form["form"] == "constant":
        return Policy(model, names, form["weights"])
    tensors, _ = load_tensors(folder / GATE_FILE)
    if form["form"] == "table":
        table = GateTable(tensors["edges"], tensors["weights"])
        layers, count = table.weights.shape[1:]
        _check_size(folder, layers, count, model, names)
        return Policy(model, names, table)
    kept = {key: form[key] for key in form if key not in ("layers", "slots")}
    gate = make_gate(GateConfig(**kept), model.dit, len(names))
    rows, experts = tensors["bias"].shape
    _check_size(folder, form.get("layers", rows), experts, model, names)
    if gate.weight.shape != tensors["weight"].shape:
        raise UsageError(
            f"{folder} has a gate of {tuple(tensors['weight'].shape)}, this model takes "
            f"{tuple(gate.weight.shape)}"
        )
    gate.load_state_dict(tensors)
    return Policy(model, names, gate.requires_grad_(False), form["input"])


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Refuse experts or a gate that are not those the policy was written with.

    Raises:
        UsageError: A file is missing or its hash is another.
    """
    for name, digest in hashes.items():
        expert = folder / "experts" / name / ADAPTER_WEIGHTS
        file = folder / GATE_FILE if name == "gate" else expert
        if not file.is_file() or hash_file(file) != digest:
            raise UsageError(
                f"{file} is not the file that this policy was made with",
                hint="a gate belongs to its experts: train a new one with ft2 tlpo train, or take "
                "constant weights with ft2 tlpo merge",
            )


def _check_size(
    folder: Path, layers: int, experts: int, model: TalkingModel, names: Sequence[ExpertName]
) -> None:
    if (layers, experts) != (model.num_layers, len(names)):
        raise UsageError(
            f"{folder} has a gate for {layers} layers and {experts} experts, wanted "
            f"{model.num_layers} and {len(names)}"
        )


def static_policy(
    experts: Mapping[ExpertName, Path], weights: float | Sequence[float], model: TalkingModel
) -> Policy:
    """Install experts with constant weights, such as 1/3, 2/3 or 1 each, and return the policy."""
    found = ordered(experts)
    install_policy_experts(model, found)
    return Policy(model, list(found), _per_expert(weights, list(found)))
