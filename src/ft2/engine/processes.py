"""Processes of one training: DeepSpeed's import, the process group, who goes first."""

import contextlib
import gc
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

from ft2.config import EngineConfig
from ft2.engine.base import env_int
from ft2.errors import MissingExtra, UsageError


def import_deepspeed() -> Any:
    """Import DeepSpeed quietly, without its shared-memory op, which needs a compiler and 20 s."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with stdout_to_stderr():
        try:
            import deepspeed
        except ImportError as error:
            raise MissingExtra("deepspeed", "train") from error
    from deepspeed.utils.logging import logger

    logger.setLevel("ERROR")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def init_distributed(deepspeed: Any) -> None:
    """Join the launcher's process group, or make one of a single process without a port."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    if not torch.distributed.is_initialized() and env_int("WORLD_SIZE", 1) == 1:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    with stdout_to_stderr():
        deepspeed.init_distributed(dist_backend=backend, verbose=False)


def local_device(name: str) -> torch.device:
    """Return where this process computes: ``cpu``, ``cuda`` (of its local rank) or ``cuda:N``.

    Raises:
        UsageError: There is no such device here.
    """
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(f"unknown device '{name}'", "choose cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    ranks, given = env_int("WORLD_SIZE", 1), match.group(1)
    if given is not None and ranks > 1:
        raise UsageError(f"device {name} for {ranks} processes", "give cuda: each takes its own")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = env_int("LOCAL_RANK", 0) if given is None else int(given)
    if index >= count:
        found = f"{count} CUDA device(s) are" if count else "no CUDA device is"
        raise UsageError(f"device {name}: {found} available", "set device cpu")
    return torch.device("cuda", index)


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return a scalar's mean over all processes (itself when there is one)."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


@contextlib.contextmanager
def rank_zero_first(config: EngineConfig) -> Iterator[None]:
    """Let rank 0 run the block before the others do; with one process nothing waits."""
    if env_int("WORLD_SIZE", 1) == 1 or config.kind != "deepspeed":
        yield
        return
    init_distributed(import_deepspeed())
    first = torch.distributed.get_rank() == 0
    if not first:
        torch.distributed.barrier()
    try:
        yield
    finally:
        if first:
            torch.distributed.barrier()


def shutdown() -> None:
    """Leave the process group, if there is one; a later engine makes another.

    DeepSpeed keeps groups of its own, so it is the one to leave where it has been used.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        deepspeed = sys.modules.get("deepspeed")
        used = deepspeed is not None and deepspeed.comm.is_initialized()
        leave = deepspeed.comm if deepspeed is not None and used else torch.distributed
        leave.destroy_process_group()


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Keep DeepSpeed's prints off stdout, which carries results only."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
