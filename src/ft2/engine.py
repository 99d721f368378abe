"""One optimiser step, in plain PyTorch or under DeepSpeed, from one typed config.

Both engines run the same loop: ``loss = engine(batch)`` and ``engine.backward(loss)`` for each of
``accumulation_steps`` micro-batches, then ``engine.step()``. Both hold a ``torch.optim.AdamW`` over
the trainable parameters and the same warm-up, so that on one process they give equal weights.
"""

import contextlib
import gc
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ft2.config import EngineConfig
from ft2.errors import MissingExtra, RunError, UsageError
from ft2.runs import hash_file, load_tensors, read_json, save_tensors, write_json


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


def make_engine(config: EngineConfig, module: nn.Module, run_dir: Path | None = None) -> Engine:
    """Return the engine that the config asks for.

    Args:
        config: Optimiser and engine settings.
        module: Its forward returns the loss; its parameters with ``requires_grad`` are trained.
        run_dir: Where ``deepspeed.json`` goes (DeepSpeed only).

    Raises:
        UsageError: Nothing is trainable, or several processes without DeepSpeed.
        MissingExtra: DeepSpeed is not installed.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise UsageError("nothing to train: no parameter requires a gradient")
    if config.kind == "deepspeed":
        if run_dir is not None and _env_int("RANK", 0) == 0:
            write_json(run_dir / "deepspeed.json", deepspeed_config(config))
        return DeepSpeedEngine(config, module)
    return TorchEngine(config, module)


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


def deepspeed_config(config: EngineConfig) -> dict[str, object]:
    """Return DeepSpeed's settings; every number comes from the config and nothing is "auto"."""
    zero: dict[str, object] = {"stage": config.zero_stage}
    if config.zero_stage:
        zero |= {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
        zero |= {"overlap_comm": torch.cuda.is_available()}
    if config.zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": 1_000_000}
    settings: dict[str, object] = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    return settings


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def _adamw(config: EngineConfig, module: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(_trainable(module).values()),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def _autocast(config: EngineConfig, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    if config.precision == "fp32":
        return contextlib.nullcontext()
    device = next(module.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16)


def _env_int(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


class TorchEngine:
    """Plain PyTorch in one process."""

    rank = 0
    world_size = 1

    def __init__(self, config: EngineConfig, module: nn.Module) -> None:
        """Make the optimiser over the module's trainable parameters."""
        if _env_int("WORLD_SIZE", 1) > 1:
            raise UsageError(
                f"engine.kind torch runs in one process, not {os.environ['WORLD_SIZE']}",
                hint="set engine.kind=deepspeed",
            )
        self.config = config
        self.module = module
        self.steps = 0
        self._optimizer = _adamw(config, module)

    def __call__(self, *args: object) -> Any:
        """Run the module's forward."""
        with _autocast(self.config, self.module):
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
        norm = nn.utils.clip_grad_norm_(_trainable(self.module).values(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return StepInfo(rate, float(norm))

    def save(self, directory: Path) -> None:
        """Write ``engine.safetensors`` (weights and both moments) and ``engine.json``."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in _trainable(self.module).items():
            tensors[f"weight/{name}"] = parameter
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
        save_tensors(directory / "engine.safetensors", tensors)
        write_json(directory / "engine.json", {"kind": "torch", "steps": self.steps})

    def load(self, directory: Path) -> None:
        """Restore weights, moments and the step count."""
        self.steps = _read_state(directory, "torch")
        tensors, _ = load_tensors(directory / "engine.safetensors")
        with torch.no_grad():
            for name, parameter in _trainable(self.module).items():
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


def _read_state(directory: Path, kind: str) -> int:
    state: Mapping[str, Any] = read_json(directory / "engine.json")
    if state["kind"] != kind:
        raise UsageError(
            f"{directory} was saved by engine.kind {state['kind']}, not {kind}",
            hint="resume with the engine that started the run",
        )
    return int(state["steps"])


class DeepSpeedEngine:
    """DeepSpeed ZeRO 0-3 on one or many processes, NCCL on GPUs and gloo on the CPU.

    A frozen base that is not registered in ``module`` is left alone by DeepSpeed (its number
    format too); for ZeRO-3 register it, so that it is partitioned.
    """

    def __init__(self, config: EngineConfig, module: nn.Module) -> None:
        """Join the process group and wrap the module and our AdamW."""
        deepspeed = _import_deepspeed()
        self.config = config
        self.module = module
        self.steps = 0
        _init_distributed(deepspeed)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self._optimizer = _adamw(config, module)
        with _stdout_to_stderr():
            self._engine: Any = deepspeed.initialize(
                model=module, optimizer=self._optimizer, config=deepspeed_config(config)
            )[0]

    def __call__(self, *args: object) -> Any:
        """Run the module's forward through DeepSpeed's hooks."""
        with _autocast(self.config, self.module):
            return self._engine(*args)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss / accumulation_steps``."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self) -> StepInfo:
        """Reduce, clip, update and clear the gradients."""
        if not self._engine.is_gradient_accumulation_boundary():
            raise RunError(f"step() before {self.config.accumulation_steps} backward() calls")
        rate = learning_rate_at(self.config, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        local = None if self.config.zero_stage else _local_norm(self.module)
        self._engine.step()
        self.steps += 1
        norm = local if local is not None else self._engine.get_global_grad_norm()
        return StepInfo(rate, float(norm if norm is not None else float("nan")))

    def save(self, directory: Path) -> None:
        """Write DeepSpeed's checkpoint without frozen weights, and the hashes of its files."""
        with _stdout_to_stderr():
            self._engine.save_checkpoint(
                str(directory), tag="deepspeed", exclude_frozen_parameters=True, save_latest=False
            )
        torch.distributed.barrier()
        if self.rank == 0:
            hashes = {p.name: hash_file(p) for p in sorted((directory / "deepspeed").iterdir())}
            state = {"kind": "deepspeed", "steps": self.steps, "sha256": hashes}
            write_json(directory / "engine.json", state)

    def load(self, directory: Path) -> None:
        """Restore a checkpoint whose files match their recorded hashes (they are pickles)."""
        self.steps = _read_state(directory, "deepspeed")
        recorded = json.loads((directory / "engine.json").read_text())["sha256"]
        for path in sorted((directory / "deepspeed").iterdir()):
            if recorded.get(path.name) != hash_file(path):
                raise RunError(f"{path} differs from what this run saved; it is not loaded")
        with _stdout_to_stderr():
            loaded, _ = self._engine.load_checkpoint(
                str(directory), tag="deepspeed", load_module_strict=False
            )
        if loaded is None:
            raise RunError(f"DeepSpeed could not read the checkpoint {directory}")

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather the trainable weights of ZeRO-3 for reading; every rank calls it."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(_trainable(self.module).values())):
            yield

    def close(self) -> None:
        """Destroy DeepSpeed's engine; the process group stays for the next stage."""
        with _stdout_to_stderr():
            self._engine.destroy()
        gc.collect()


def _local_norm(module: nn.Module) -> float:
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(grads))


def _import_deepspeed() -> Any:
    """Import DeepSpeed quietly, without its shared-memory op, which needs a compiler and 20 s."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with _stdout_to_stderr():
        try:
            import deepspeed
        except ImportError as error:
            raise MissingExtra("deepspeed", "train") from error
    from deepspeed.utils.logging import logger

    logger.setLevel("ERROR")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _init_distributed(deepspeed: Any) -> None:
    """Join the launcher's process group, or make one of a single process without a port."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    if not torch.distributed.is_initialized() and _env_int("WORLD_SIZE", 1) == 1:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    with _stdout_to_stderr():
        deepspeed.init_distributed(dist_backend=backend, verbose=False)


def local_device(kind: str) -> torch.device:
    """Return where this process computes: ``cpu``, or the CUDA device of its local rank.

    Raises:
        UsageError: CUDA is asked for and there is none.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda: no CUDA device is available", hint="set device=cpu")
    return torch.device(kind, _env_int("LOCAL_RANK", 0)) if kind == "cuda" else torch.device(kind)


@contextlib.contextmanager
def rank_zero_first(config: EngineConfig) -> Iterator[None]:
    """Let rank 0 run the block before the others do; with one process nothing waits."""
    if _env_int("WORLD_SIZE", 1) == 1 or config.kind != "deepspeed":
        yield
        return
    _init_distributed(_import_deepspeed())
    first = torch.distributed.get_rank() == 0
    if not first:
        torch.distributed.barrier()
    try:
        yield
    finally:
        if first:
            torch.distributed.barrier()


def shutdown() -> None:
    """Leave the process group, if there is one; call it once, at the end of a process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep DeepSpeed's prints off stdout, which carries results only."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
