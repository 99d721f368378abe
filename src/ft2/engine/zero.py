"""DeepSpeed ZeRO 0 to 3, called directly, on GPUs and on the CPU."""

import contextlib
import gc
import json
from collections.abc import Iterator
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
    learning_rate_at,
    trainable,
)
from ft2.engine.processes import import_deepspeed, init_distributed, stdout_to_stderr
from ft2.errors import RunError
from ft2.runs import hash_file, write_json


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


class DeepSpeedEngine:
    """DeepSpeed ZeRO 0-3 on one or many processes, NCCL on GPUs and gloo on the CPU.

    A frozen base that is not registered in ``module`` is left alone by DeepSpeed (its number
    format too); for ZeRO-3 register it, so that it is partitioned.
    """

    def __init__(self, config: EngineConfig, module: nn.Module) -> None:
        """Join the process group and wrap the module and our AdamW."""
        deepspeed = import_deepspeed()
        self.config = config
        self.module = module
        self.steps = 0
        init_distributed(deepspeed)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self._optimizer = adamw(config, module)
        with stdout_to_stderr():
            self._engine: Any = deepspeed.initialize(
                model=module, optimizer=self._optimizer, config=deepspeed_config(config)
            )[0]

    def __call__(self, *args: object) -> Any:
        """Run the module's forward through DeepSpeed's hooks."""
        with autocast(self.config, device_of(self.module)):
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
        """Write DeepSpeed's checkpoint without frozen weights, and the hashes of its files.

        Raises:
            OSError: This process or another one could not write its part; every process raises.
        """
        with stdout_to_stderr(), _failures_kept(self._engine) as failures:
            self._engine.save_checkpoint(
                str(directory), tag="deepspeed", exclude_frozen_parameters=True, save_latest=False
            )
        _raise_together(failures)
        if self.rank == 0:
            hashes = {p.name: hash_file(p) for p in sorted((directory / "deepspeed").iterdir())}
            state = {
                "kind": "deepspeed",
                "steps": self.steps,
                "world_size": self.world_size,
                "sha256": hashes,
            }
            write_json(directory / "engine.json", state)

    def load(self, directory: Path) -> None:
        """Restore a checkpoint whose files match their recorded hashes (they are pickles)."""
        self.steps = check_resumable(directory, self.config)
        recorded = json.loads((directory / "engine.json").read_text())["sha256"]
        for path in sorted((directory / "deepspeed").iterdir()):
            if recorded.get(path.name) != hash_file(path):
                raise RunError(f"{path} differs from what this run saved; it is not loaded")
        with stdout_to_stderr():
            loaded, _ = self._engine.load_checkpoint(
                str(directory), tag="deepspeed", load_module_strict=False
            )
        if loaded is None:
            raise RunError(f"DeepSpeed could not read the checkpoint {directory}")

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather the trainable weights of ZeRO-3 for reading; every rank calls it."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(trainable(self.module).values())):
            yield

    def close(self) -> None:
        """Destroy DeepSpeed's engine; the process group stays for the next stage."""
        with stdout_to_stderr():
            self._engine.destroy()
        gc.collect()


def _local_norm(module: nn.Module) -> float:
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    return float(nn.utils.get_total_norm(grads))


@contextlib.contextmanager
def _failures_kept(engine: Any) -> Iterator[list[Exception]]:
    """Keep what DeepSpeed's writing raises: a process that left it early would be waited for."""
    failures: list[Exception] = []

    def guarded(write: Any) -> Any:
        def call(*args: object, **kwargs: object) -> None:
            try:
                write(*args, **kwargs)
            except (OSError, RuntimeError) as error:
                failures.append(error)

        return call

    places = ((engine.checkpoint_engine, "save"), (engine, "_copy_recovery_script"))
    for owner, name in places:
        setattr(owner, name, guarded(getattr(owner, name)))
    try:
        yield failures
    finally:
        for owner, name in places:
            delattr(owner, name)


def _raise_together(failures: list[Exception]) -> None:
    """Raise an OSError in every process if one of them has failures."""
    kind = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    count = torch.tensor([float(len(failures))], device=kind)
    torch.distributed.all_reduce(count)
    if failures:
        raise OSError(str(failures[0])) from failures[0]
    if float(count):
        raise OSError("another process could not write its part")
