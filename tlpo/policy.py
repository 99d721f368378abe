"""Policies on a model: experts and the weights with which they act, from a directory.

A learned gate depends on the timestep alone, so the table of its weights over steps and layers can
be looked at, and computed before sampling.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.lora import FusedLinear, fused_linears
from ft2.runs import load_tensors
from ft2.tlpo.experts import ExpertName, expert_dimension, find_adapter, install_policy_experts
from ft2.tlpo.gate import (
    FusionGate,
    GateInput,
    GateTable,
    constant_gate,
    make_gate,
    timestep_features,
)
from ft2.tlpo.options import GateConfig
from ft2.tlpo.policy_files import GATE_FILE, check_files, find_policy, per_expert, read_policy
from ft2.wan.model import TalkingModel


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
        return Policy(self._model, self.experts, per_expert(weights, self.experts))

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


def _load_policy_dir(folder: Path, model: TalkingModel) -> Policy:
    record = read_policy(folder)
    names: list[ExpertName] = record["experts"]
    check_files(folder, record.get("sha256", {}))
    install_policy_experts(model, {name: folder / "experts" / name for name in names})
    return Policy(model, names, load_gate(folder, model.dit), record["gate"].get("input", "none"))


def load_gate(folder: Path, dit: nn.Module) -> FusionGate | GateTable | list[float]:
    """Return what decides the expert weights in a policy directory.

    Args:
        folder: As of `read_policy`.
        dit: The transformer, with the policy's experts installed; the meta device will do.

    Raises:
        UsageError: It is for another number of layers or experts, or another width.
    """
    record = read_policy(folder)
    form, names = record["gate"], record["experts"]
    if form["form"] == "constant":
        return list(per_expert(form["weights"], names))
    tensors, _ = load_tensors(folder / GATE_FILE)
    wanted = (len(dit.get_submodule("blocks")), len(names))  # type: ignore[arg-type]
    if form["form"] == "table":
        table = GateTable(tensors["edges"], tensors["weights"])
        _check_size(folder, tuple(table.weights.shape[1:]), wanted)
        return table
    kept = {key: form[key] for key in form if key not in ("layers", "slots")}
    gate = make_gate(GateConfig(**kept), dit, len(names))
    rows, experts = tensors["bias"].shape
    _check_size(folder, (form.get("layers", rows), experts), wanted)
    if gate.weight.shape != tensors["weight"].shape:
        raise UsageError(
            f"{folder} has a gate of {tuple(tensors['weight'].shape)}, this model takes "
            f"{tuple(gate.weight.shape)}"
        )
    gate.load_state_dict(tensors)
    return gate.requires_grad_(False)


def _check_size(folder: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise UsageError(
            f"{folder} has a gate for {found[0]} layers and {found[1]} experts, wanted "
            f"{wanted[0]} and {wanted[1]}"
        )
