"""Expert LoRAs on frozen linears: several experts in one down- and one up-projection.

The experts of a linear are concatenated along the rank, and a per-sample weight (the *gate*)
scales each expert in rank space::

    gs = repeat_interleave(gate, r) * alpha / r          # [B, K*r]
    y  = x W^T + b + ((x A^T) * gs) Bc^T                 # A [K*r, in], Bc [out, K*r]

which equals ``W x + sum_k gate_k * alpha/r * B_k A_k x`` (LoRA-Flow, arXiv 2402.11455, eq. 4).
The gate is an argument of every call and never module state: a gate kept as an attribute gives
silently wrong gradients under activation checkpointing and with several draws in one graph.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.runs import load_tensors, read_json, save_tensors, write_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


class FusedLinear(nn.Linear):
    """A frozen linear carrying K experts of one rank; ``gate=None`` is bitwise the base.

    The base weight and bias keep their names (``weight``, ``bias``), so a base state dict
    still fits. Expert k owns rows ``k*r:(k+1)*r`` of ``lora_A`` and these columns of ``lora_B``.
    """

    def __init__(self, base: nn.Linear, num_experts: int, rank: int, alpha: float) -> None:
        """Take over ``base``'s parameters and add experts with ``B = 0`` (no effect at first).

        Args:
            base: The linear to adapt; its parameters are shared, not copied, and frozen.
            num_experts: K >= 1.
            rank: r >= 1, the same for all experts.
            alpha: LoRA scale; an expert of gate weight 1 acts with ``alpha / rank``.
        """
        if num_experts < 1 or rank < 1:
            raise UsageError(f"num_experts {num_experts} and rank {rank} must be at least 1")
        nn.Module.__init__(self)
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.num_experts = num_experts
        self.rank = rank
        self.alpha = float(alpha)
        self.weight = base.weight
        self.bias = base.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        size, device = num_experts * rank, base.weight.device
        dtype = _master_dtype(base.weight.dtype)
        down = torch.empty(size, base.in_features, device=device, dtype=dtype)
        up = torch.zeros(base.out_features, size, device=device, dtype=dtype)
        self.lora_A = nn.Parameter(down)
        self.lora_B = nn.Parameter(up)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def scaling(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank

    def rows(self, expert: int) -> slice:
        """The slice of rank space owned by one expert."""
        if not 0 <= expert < self.num_experts:
            raise UsageError(f"expert {expert} of {self.num_experts} does not exist")
        return slice(expert * self.rank, (expert + 1) * self.rank)

    def forward(self, input: Tensor, gate: Tensor | None = None) -> Tensor:
        """Apply the base and, with a gate, the weighted experts.

        Args:
            input: [B, ..., in].
            gate: [B, K] weight of each expert for each sample, or None for the base alone.

        Returns:
            [B, ..., out] in the dtype of the input.
        """
        base = F.linear(input, self.weight, self.bias)
        if gate is None:
            return base
        if gate.shape != (input.shape[0], self.num_experts):
            raise ValueError(
                f"gate is {tuple(gate.shape)}, wanted {(input.shape[0], self.num_experts)} "
                f"for input {tuple(input.shape)}"
            )
        scale = (gate * self.scaling).repeat_interleave(self.rank, dim=1).to(input.dtype)
        scale = scale.reshape(scale.shape[0], *([1] * (input.ndim - 2)), scale.shape[1])
        hidden = F.linear(input, self.lora_A.to(input.dtype)) * scale
        return base + F.linear(hidden, self.lora_B.to(input.dtype))

    def extra_repr(self) -> str:
        """Describe the experts beside the sizes."""
        return (
            f"{super().extra_repr()}, num_experts={self.num_experts}, "
            f"rank={self.rank}, alpha={self.alpha:g}"
        )


def apply_linear(linear: nn.Module, x: Tensor, gate: Tensor | None = None) -> Tensor:
    """Call a linear with the gate if it carries experts, without it otherwise.

    Args:
        linear: ``nn.Linear`` or ``FusedLinear``.
        x: [B, ..., in].
        gate: [B, K] or None (base only).

    Returns:
        [B, ..., out].
    """
    out: Tensor = linear(x, gate) if isinstance(linear, FusedLinear) else linear(x)
    return out


def repeat_gate(gate: Tensor | None, repeats: int) -> Tensor | None:
    """Repeat each gate row for a batch of B x repeats (frames folded into the batch).

    Args:
        gate: [B, K] or None.
        repeats: Consecutive rows per sample, as in ``x.reshape(B * repeats, ...)``.

    Returns:
        [B * repeats, K], or None for None.
    """
    return None if gate is None else gate.repeat_interleave(repeats, dim=0)


def install_experts(
    module: nn.Module, targets: Sequence[str], num_experts: int, rank: int, alpha: float
) -> int:
    """Freeze ``module`` and replace every targeted linear by a ``FusedLinear`` in place.

    Args:
        module: The network (for example the DiT).
        targets: Suffixes of module names, matched on whole name parts: ``attn1.to_q`` takes
            ``blocks.0.attn1.to_q``.
        num_experts: K.
        rank: r.
        alpha: LoRA scale.

    Returns:
        The number of adapted linears.

    Raises:
        UsageError: A target matches nothing or something that is not a plain ``nn.Linear``.
    """
    if any(isinstance(m, FusedLinear) for m in module.modules()):
        raise UsageError("experts are already installed", hint="load a fresh base model")
    found: dict[str, nn.Linear] = {}
    unmatched = []
    for target in dict.fromkeys(targets):
        names = [n for n, _ in module.named_modules() if n == target or n.endswith("." + target)]
        if not names:
            unmatched.append(target)
        for name in names:
            linear = module.get_submodule(name)
            if type(linear) is not nn.Linear:
                raise UsageError(f"LoRA target {name} is a {type(linear).__name__}, not a Linear")
            found[name] = linear
    if unmatched or not found:
        linears = sorted({n.split(".", 2)[-1] for n, m in module.named_modules()
                          if isinstance(m, nn.Linear)})  # fmt: skip
        raise UsageError(
            f"LoRA targets match no module: {', '.join(unmatched) or '(none given)'}",
            hint=f"linears of this network: {', '.join(linears[:30])}",
        )
    module.requires_grad_(False)
    for name, linear in found.items():
        parent = module.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2],
                FusedLinear(linear, num_experts, rank, alpha))  # fmt: skip
    return len(found)


def remove_experts(module: nn.Module) -> int:
    """Put the plain base linears back in place; their weights are the untouched, frozen base's.

    Returns:
        The number of linears restored (0 if there were no experts).
    """
    layers = list(fused_linears(module))
    for name, layer in layers:
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        linear.weight, linear.bias = layer.weight, layer.bias
        setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], linear)
    return len(layers)


def fused_linears(module: nn.Module) -> Iterator[tuple[str, FusedLinear]]:
    """Yield (name, layer) of every adapted linear, in module order."""
    for name, layer in module.named_modules():
        if isinstance(layer, FusedLinear):
            yield name, layer


def expert_parameters(module: nn.Module) -> list[nn.Parameter]:
    """List all expert parameters (every ``lora_A`` and ``lora_B``), in module order."""
    return [p for _, layer in fused_linears(module) for p in (layer.lora_A, layer.lora_B)]


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
        state[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = a.detach().cpu().clone()
        state[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = b.detach().cpu().contiguous().clone()
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
    wanted = {f"{_PEFT_PREFIX}{n}.lora_{x}.weight" for n in layers for x in "AB"}
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
        a, b = (tensors[f"{_PEFT_PREFIX}{name}.lora_{x}.weight"] for x in "AB")
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
    directory = Path(directory)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (directory / name).is_file():
            raise UsageError(f"{directory} holds no {name}", hint="give an expert's directory")
    config = read_json(directory / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{directory} is no LoRA adapter: peft_type {config.get('peft_type')!r}")
    return config, load_tensors(directory / ADAPTER_WEIGHTS)[0]


def _master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Experts are kept in at least fp32, whatever the base is stored in."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
