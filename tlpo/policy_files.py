"""Policies as files: a directory that stands alone.

It holds ``policy.json``, ``gate.safetensors`` (a learned gate, or a table over the noise level) and
``experts/<dimension>/`` (PEFT adapters).
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from ft2.config import Config
from ft2.errors import UsageError
from ft2.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config
from ft2.runs import hash_file, read_json, save_tensors, write_json
from ft2.tlpo.experts import EXPERT_NAMES, ExpertName, adapter_base, find_adapter, ordered
from ft2.tlpo.gate import FusionGate, GateTable
from ft2.tlpo.options import GateConfig

POLICY_FILE = "policy.json"
GATE_FILE = "gate.safetensors"


class _Learned(GateConfig):
    layers: int = Field(1, ge=1)
    slots: int = Field(1, ge=1)


class _Constant(Config):
    form: Literal["constant"]
    weights: list[FiniteFloat]


class _Table(Config):
    form: Literal["table"]


class _Record(Config):
    """What ``policy.json`` must say; it may say more."""

    model_config = ConfigDict(extra="ignore")

    experts: list[str] = Field(min_length=1)
    gate: Annotated[_Learned | _Constant | _Table, Field(discriminator="form")]
    base: str | None = None
    sha256: dict[str, str] = Field(default_factory=dict)
    average: list[list[FiniteFloat]] | None = None

    @model_validator(mode="after")
    def _check_experts(self) -> "_Record":
        if odd := set(self.experts) - set(EXPERT_NAMES):
            raise ValueError(f"experts: {min(odd)} is none of {', '.join(EXPERT_NAMES)}")
        if isinstance(self.gate, _Constant) and len(self.gate.weights) != len(self.experts):
            raise ValueError(f"{len(self.gate.weights)} weights for {len(self.experts)} experts")
        return self


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

    Raises:
        UsageError: An expert does not fit its name, or there are not as many weights as experts.
    """
    found = ordered(experts)
    constant = () if isinstance(gate, FusionGate | GateTable) else per_expert(gate, list(found))
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
        record["gate"] = {"form": "constant", "weights": constant}
    write_json(directory / POLICY_FILE, record)


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
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{folder / POLICY_FILE} does not say which experts it has and how they act: "
            f"{place + ': ' if place else ''}{first['msg']}",
            hint="write the policy anew: ft2 tlpo train NAME/fusion, or ft2 tlpo merge",
        ) from error
    whole: dict[str, Any] = record
    return whole


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Refuse experts or a gate that are not those the policy was written with.

    Raises:
        UsageError: A file is missing or its hash is another.
    """
    for name, digest in hashes.items():
        expert = folder / "experts" / name / ADAPTER_WEIGHTS
        file = folder / GATE_FILE if name == "gate" else expert
        if name != "gate":
            read_adapter_config(expert.parent)
        if not file.is_file() or hash_file(file) != digest:
            raise UsageError(
                f"{file} is not the file that this policy was made with",
                hint="a gate belongs to its experts: train a new one with ft2 tlpo train, or take "
                "constant weights with ft2 tlpo merge",
            )


def per_expert(weights: float | Sequence[float], experts: Sequence[str]) -> tuple[float, ...]:
    """Return constant weights, one for each expert, of one number for all or of K.

    Raises:
        UsageError: Their number is another.
    """
    values = (weights,) * len(experts) if isinstance(weights, int | float) else tuple(weights)
    if len(values) != len(experts):
        raise UsageError(f"{len(values)} weights for {len(experts)} experts")
    return tuple(float(value) for value in values)
