"""Put experts on a network's linears, find them again, and take them off."""

import re
from collections.abc import Iterator, Sequence

from torch import nn

from ft2.errors import UsageError
from ft2.lora.fused import FusedLinear


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
    slots = sorted({_stem(name) for name in found})
    for name, linear in found.items():
        parent = module.get_submodule(name.rpartition(".")[0])
        layer = FusedLinear(linear, num_experts, rank, alpha, slots.index(_stem(name)))
        setattr(parent, name.rpartition(".")[2], layer)
    return len(found)


def gate_slots(module: nn.Module) -> list[str]:
    """Return what the slots of a gate per linear mean: the linears' names within a block."""
    return sorted({_stem(name) for name, _ in fused_linears(module)})


def _stem(name: str) -> str:
    """Return a name without its block: ``attn1.to_q`` for ``blocks.3.attn1.to_q``."""
    return re.sub(r"^.*?\.\d+\.", "", name)


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
