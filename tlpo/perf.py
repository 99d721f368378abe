"""What a training step takes: seconds a pair, operations a second, memory, waiting for data."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ft2.engine import Engine
from ft2.tlpo.memory import GIB

_RSS_UNIT = 1024 if sys.platform != "darwin" else 1
"""Bytes in a unit of `ru_maxrss`."""


class Clock:
    """Seconds of the parts of a step: by events on a GPU, which do not hold it up."""

    def __init__(self, device: torch.device) -> None:
        """Start with nothing timed."""
        self._device = device
        self._parts: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block; the times of several blocks of one name add up."""
        start = self._now()
        yield
        self._parts.setdefault(name, []).append((start, self._now()))

    def take(self) -> dict[str, float]:
        """Return the seconds by part since the last call."""
        parts, self._parts = self._parts, {}
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return {
                name: sum(a.elapsed_time(b) for a, b in times) / 1000
                for name, times in parts.items()
            }
        return {name: sum(b - a for a, b in times) for name, times in parts.items()}

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def perf_metrics(
    parts: Mapping[str, float], pairs: int, pair_flops: float, engine: Engine, device: torch.device
) -> dict[str, float]:
    """Return what a step took, of the slowest process where there are several.

    Args:
        parts: Seconds of the ``step``, and within it of ``data`` and ``reference``.
        pairs: Pairs of one process.
        pair_flops: Operations of one pair, as planned (`ft2.tlpo.work`).
        engine: Knows the other processes.
        device: Where this one computes.

    Returns:
        ``perf_seconds_per_pair``, ``perf_tflops``, ``perf_memory_gib`` (`peak_gib`), and of the
        time ``perf_data_share`` and ``perf_reference_share``.
    """
    names = ("step", "data", "reference")
    own = [*(parts.get(name, 0.0) for name in names), peak_gib(device)]
    if engine.world_size > 1:
        table = torch.tensor(own, device=device, dtype=torch.float64)
        torch.distributed.all_reduce(table, torch.distributed.ReduceOp.MAX)
        own = table.tolist()
    seconds, data, reference, memory = own
    return {
        "perf_seconds_per_pair": seconds / pairs,
        "perf_tflops": pairs * pair_flops / seconds / 1e12,
        "perf_memory_gib": memory,
        "perf_data_share": data / seconds,
        "perf_reference_share": reference / seconds,
    }


def peak_gib(device: torch.device) -> float:
    """Return the most memory so far: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / GIB
