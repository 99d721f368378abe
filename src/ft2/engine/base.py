"""What every engine is: the protocol, the learning rate, the optimiser, the checkpoint's record."""

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ft2.config import EngineConfig
from ft2.errors import UsageError
from ft2.runs import read_json


@dataclass(frozen=True)
class StepInfo:
    """What one optimiser step did."""

    learning_rate: float
    """The rate that this step used."""
    grad_norm: float
    """Global gradient norm before clipping."""


class Engine(Protocol):
    """A module whose forward returns a loss (or a tuple that starts with it), and its optimiser."""

    module: nn.Module
    steps: int
    rank: int
    world_size: int

    def __call__(self, *args: object) -> Any:
        """Run the module's forward."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss / accumulation_steps``."""

    def step(self) -> StepInfo:
        """Clip, update and clear the gradients; call it after ``accumulation_steps`` backwards."""

    def save(self, directory: Path) -> None:
        """Write the trainable weights and the whole optimiser state; every rank calls it."""

    def load(self, directory: Path) -> None:
        """Restore what ``save`` wrote, bit for bit."""

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the trainable weights are whole on every rank (ZeRO-3 splits them)."""

    def close(self) -> None:
        """Release what the engine holds; the module keeps its weights."""


def learning_rate_at(config: EngineConfig, step: int) -> float:
    """Return the learning rate of a step.

    Linear warm-up ``(step + 1) / warmup``, then constant or, with ``decay_steps``, a cosine that
    ends at a twentieth.

    Args:
        config: Gives the peak and the number of warm-up steps.
        step: Steps already done, >= 0.
    """
    rate = config.learning_rate
    if config.decay_steps:
        place = min(1.0, step / config.decay_steps)
        rate *= 0.05 + 0.475 * (1 + math.cos(math.pi * place))
    if step >= config.warmup_steps:
        return rate
    return rate * (step + 1) / config.warmup_steps


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient, by name."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def adamw(config: EngineConfig, module: nn.Module) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters."""
    return torch.optim.AdamW(
        list(trainable(module).values()),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def autocast(config: EngineConfig, device: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context of the forward pass: bf16 autocast, or nothing for fp32."""
    if config.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def device_of(module: nn.Module) -> str:
    """Return the kind of device that a module's parameters lie on."""
    return next(module.parameters()).device.type


def env_int(name: str, default: int) -> int:
    """Return a number from the environment, such as ``WORLD_SIZE``."""
    return int(os.environ.get(name, default))


def check_resumable(directory: Path, config: EngineConfig) -> int:
    """Return the steps of a checkpoint that this engine and number of processes can go on from.

    Raises:
        UsageError: It was saved by another engine or number of processes, or its record is damaged.
    """
    state: Mapping[str, Any] = read_json(directory / "engine.json")
    if not isinstance(state, dict) or not {"kind", "steps"} <= set(state):
        raise UsageError(
            f"{directory / 'engine.json'} does not say what saved the checkpoint",
            hint="write the number of another checkpoint into checkpoints/latest, or start anew",
        )
    if state["kind"] != config.kind:
        raise UsageError(
            f"{directory} was saved by engine.kind {state['kind']}, not {config.kind}",
            hint="resume with the engine that started the run",
        )
    saved, now = int(state.get("world_size", 1)), env_int("WORLD_SIZE", 1)
    if saved != now:
        raise UsageError(
            f"{directory} was saved by {saved} processes, this run has {now}",
            hint=f"resume with --nproc-per-node {saved}, or start anew in another --output",
        )
    return int(state["steps"])
