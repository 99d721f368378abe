"""Plain PyTorch in one process."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ft2.config import EngineConfig
from ft2.engine.base import (
    StepInfo,
    adamw,
    autocast,
    check_resumable,
    device_of,
    env_int,
    learning_rate_at,
    trainable,
)
from ft2.errors import RunError, UsageError
from ft2.runs import load_tensors, save_tensors, write_json


class TorchEngine:
    """Plain PyTorch in one process."""

    rank = 0
    world_size = 1

    def __init__(self, config: EngineConfig, module: nn.Module) -> None:
        """Make the optimiser over the module's trainable parameters."""
        if env_int("WORLD_SIZE", 1) > 1:
            raise UsageError(
                f"engine.kind torch runs in one process, not {os.environ['WORLD_SIZE']}",
                hint="set engine.kind=deepspeed",
            )
        self.config = config
        self.module = module
        self.steps = 0
        self._optimizer = adamw(config, module)

    def __call__(self, *args: object) -> Any:
        """Run the module's forward."""
        with autocast(self.config, device_of(self.module)):
            return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss / accumulation_steps``."""
        (loss / self.config.accumulation_steps).backward()

    def step(self) -> StepInfo:
        """Clip, update and clear the gradients."""
        rate = learning_rate_at(self.config, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        limit = self.config.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(trainable(self.module).values(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return StepInfo(rate, float(norm))

    def save(self, directory: Path) -> None:
        """Write ``engine.safetensors`` (weights and both moments) and ``engine.json``."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in trainable(self.module).items():
            tensors[f"weight/{name}"] = parameter
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
        save_tensors(directory / "engine.safetensors", tensors)
        write_json(
            directory / "engine.json", {"kind": "torch", "steps": self.steps, "world_size": 1}
        )

    def load(self, directory: Path) -> None:
        """Restore weights, moments and the step count."""
        self.steps = check_resumable(directory, self.config)
        tensors, _ = load_tensors(directory / "engine.safetensors")
        with torch.no_grad():
            for name, parameter in trainable(self.module).items():
                parameter.copy_(tensors.pop(f"weight/{name}"))
                state = self._optimizer.state[parameter]
                for key in [k for k in tensors if k.partition("/")[2] == name]:
                    value = tensors.pop(key)
                    moved = value if value.ndim == 0 else value.to(parameter.device)
                    state[key.partition("/")[0]] = moved
        if tensors:
            raise RunError(f"{directory} holds unknown parameters: {sorted(tensors)[:3]}")

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: the weights are whole."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Drop the optimiser's state."""
        self._optimizer.state.clear()
