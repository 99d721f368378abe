"""Experts as PEFT adapters on disk: written so that PEFT reads them, read back exactly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.lora.install import fused_linears
from ft2.runs import load_tensors, read_json, save_tensors, write_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


def expert_state(module: nn.Module, expert: int) -> dict[str, Tensor]:
    """Copy one expert out as PEFT-named tensors.

    Returns:
        ``base_model.model.<linear>.lora_A.weight`` [r, in] and ``...lora_B.weight`` [out, r],
        detached on the CPU.
    """
    state = {}
    for name, layer in fused_linears(module):
        rows = layer.rows(expert)
        a, b = layer.lora_A[rows], layer.lora_B[:, rows]
        state[f"{PEFT_PREFIX}{name}.lora_A.weight"] = a.detach().cpu().clone()
        state[f"{PEFT_PREFIX}{name}.lora_B.weight"] = b.detach().cpu().contiguous().clone()
    return state


def save_expert(
    module: nn.Module,
    expert: int,
    directory: str | Path,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write one expert as a PEFT adapter that ``peft.PeftModel.from_pretrained`` reads.

    Args:
        module: The network with experts, named as the base network is.
        expert: Index k.
        directory: Created if absent; gets ``adapter_config.json`` and
            ``adapter_model.safetensors``.
        metadata: Extra safetensors metadata, such as the hash of the base weights.

    Returns:
        The directory.
    """
    layers = dict(fused_linears(module))
    if not layers:
        raise UsageError("this network carries no experts to save")
    layer = next(iter(layers.values()))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": layer.rank,
        "lora_alpha": layer.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted(layers),
    }
    save_tensors(
        directory / ADAPTER_WEIGHTS,
        expert_state(module, expert),
        {"format": "pt", **(metadata or {})},
    )
    write_json(directory / ADAPTER_CONFIG, config)
    return directory


def load_expert(module: nn.Module, expert: int, directory: str | Path) -> None:
    """Read a PEFT adapter into slot ``expert``; a smaller rank is padded, the scale folded in.

    Args:
        module: A network with experts on exactly the adapter's linears.
        expert: Index k.
        directory: Directory with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        UsageError: Files missing, keys missing or unexpected, or the rank above the slot's.
    """
    config, tensors = read_adapter(directory)
    layers = dict(fused_linears(module))
    wanted = {f"{PEFT_PREFIX}{n}.lora_{x}.weight" for n in layers for x in "AB"}
    if wanted != set(tensors):
        raise UsageError(
            f"adapter {directory} does not fit this network: {len(wanted - set(tensors))} keys "
            f"missing, {len(set(tensors) - wanted)} unexpected "
            f"({', '.join(sorted(wanted ^ set(tensors))[:3])})",
            hint="use the LoRA targets and the base model that the adapter was trained with",
        )
    rank, scaling = int(config["r"]), float(config["lora_alpha"]) / int(config["r"])
    for name, layer in layers.items():
        if rank > layer.rank:
            raise UsageError(f"adapter {directory} has rank {rank}, the slot {layer.rank}")
        a, b = (tensors[f"{PEFT_PREFIX}{name}.lora_{x}.weight"] for x in "AB")
        if a.shape[1] != layer.in_features or b.shape[0] != layer.out_features:
            raise UsageError(f"adapter {directory}: {name} is {tuple(b.shape)} x {tuple(a.shape)}")
        start = layer.rows(expert).start
        factor = scaling / layer.scaling
        with torch.no_grad():
            layer.lora_A[layer.rows(expert)] = 0
            layer.lora_B[:, layer.rows(expert)] = 0
            layer.lora_A[start : start + rank] = a.to(layer.lora_A)
            layer.lora_B[:, start : start + rank] = b.to(layer.lora_B) * factor


def read_adapter(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a PEFT adapter directory into (config, tensors).

    Raises:
        UsageError: A file is missing or not a LoRA adapter.
    """
    config = read_adapter_config(directory)
    return config, load_tensors(Path(directory) / ADAPTER_WEIGHTS)[0]


def read_adapter_config(directory: str | Path) -> dict[str, Any]:
    """Read the config of a PEFT adapter directory whose weights are there, too.

    Raises:
        UsageError: A file is missing, or the config is not a LoRA adapter's.
    """
    directory = Path(directory)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (directory / name).is_file():
            raise UsageError(f"{directory} holds no {name}", hint="give an expert's directory")
    config = read_json(directory / ADAPTER_CONFIG)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UsageError(f"{directory} is no LoRA adapter: peft_type {kind!r}")
    rank, alpha, targets = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    sizes = isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float) and alpha > 0
    if not sizes or not isinstance(targets, list) or not targets:
        raise UsageError(
            f"{directory / ADAPTER_CONFIG} says r {rank!r}, lora_alpha {alpha!r}, target_modules "
            f"{targets!r}",
            hint="it takes two numbers above 0 and a list of names: copy the adapter again",
        )
    whole: dict[str, Any] = config
    return whole
