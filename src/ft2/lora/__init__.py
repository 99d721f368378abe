"""Expert LoRAs on frozen linears: the fused linear, where it is put, and its files."""

from ft2.lora.apply import apply_linear, apply_linears, repeat_gate
from ft2.lora.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PEFT_PREFIX,
    expert_state,
    load_expert,
    read_adapter,
    read_adapter_config,
    save_expert,
)
from ft2.lora.fused import FusedLinear
from ft2.lora.install import (
    expert_parameters,
    fused_linears,
    gate_slots,
    install_experts,
    remove_experts,
)
from ft2.lora.merge import Gate, SharedGate, layer_gate

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "PEFT_PREFIX",
    "FusedLinear",
    "Gate",
    "SharedGate",
    "apply_linear",
    "apply_linears",
    "expert_parameters",
    "expert_state",
    "fused_linears",
    "gate_slots",
    "install_experts",
    "layer_gate",
    "load_expert",
    "read_adapter",
    "read_adapter_config",
    "remove_experts",
    "repeat_gate",
    "save_expert",
]
