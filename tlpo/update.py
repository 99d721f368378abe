"""One optimiser step of either stage: its pairs, their draws, and what they said on all ranks."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch

from ft2.engine import Engine
from ft2.errors import RunError
from ft2.runs import RunDir
from ft2.tlpo.config import StageConfig
from ft2.tlpo.data import PairData
from ft2.tlpo.diagnostics import step_metrics
from ft2.tlpo.draws import draw_numbers, pair_order, step_draws, stored_draws, use_mask
from ft2.tlpo.held_out import HeldOut
from ft2.tlpo.perf import Clock, perf_metrics
from ft2.tlpo.probes import Probe
from ft2.tlpo.reference import StoredReference, pair_key
from ft2.tlpo.step import Stats

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """What the loop trains with."""

    run: RunDir
    engine: Engine
    data: PairData
    held_out: HeldOut
    config: StageConfig
    device: torch.device
    clock: Clock
    """Times the parts of a step; the reference pass is the loss module's."""
    pair_flops: float
    """Operations of a pair, as planned."""
    reference: StoredReference | None = None
    """The reference's errors on stored draws, where they are kept."""
    probe: Probe | None = None
    """Looks at the weights that are trained."""


def train_step(training: Training, step: int) -> Metrics:
    """Do one optimiser step and return the metrics of its pairs, over micro-batches and ranks.

    Raises:
        RunError: The loss is not finite; nothing was updated.
    """
    config, engine, clock = training.config, training.engine, training.clock
    micro, accumulation = config.engine.micro_batch_size, config.engine.accumulation_steps
    size = micro * accumulation * engine.world_size
    parts = []
    with clock.part("step"):
        for turn in range(accumulation):
            first = (turn * engine.world_size + engine.rank) * micro
            with clock.part("data"):
                given = _inputs(training, step, list(range(first, first + micro)), size)
            loss, stats = engine(*given)
            engine.backward(loss)
            parts.append(stats)
        metrics = step_metrics(_gather(parts, engine), config.sigma)
        if not math.isfinite(cast("float", metrics["loss"])):
            raise RunError(
                f"the loss of step {step + 1} is not finite",
                "lower engine.learning_rate, or look at the clips of this run's dataset; the last "
                "checkpoint is whole",
            )
        info = engine.step()
    metrics |= {"grad_norm": info.grad_norm, "learning_rate": info.learning_rate}
    metrics["grad_norm_clipped"] = clipped(info.grad_norm, config.engine.max_grad_norm)
    taken = (clock.take(), micro * accumulation, training.pair_flops)
    return metrics | perf_metrics(*taken, engine, training.device)


def clipped(norm: float, limit: float) -> float:
    """Return the gradient's norm after clipping to ``limit``; 0 is no limit, NaN stays."""
    return limit if limit and norm > limit else norm


def look(training: Training, *, evaluation: bool) -> Metrics:
    """Return what the probe sees in the trained weights, whole on every rank meanwhile."""
    probe = training.probe
    if probe is None or not (evaluation or probe.each_step):
        return {}
    with training.engine.gathered():
        return probe.look(evaluation=evaluation)


def _inputs(training: Training, step: int, places: list[int], size: int) -> tuple[object, ...]:
    """Return batch, sigma, noise and known reference errors of some places of a step."""
    config, data, device = training.config, training.data, training.device
    seed, first = config.loop.seed, step * size
    order = pair_order(len(data), seed, first, size)
    index = [order[place] for place in places]
    masked = None
    if config.mask.kind == "lip" and config.mask.probability < 1:
        masked = [use_mask(config.mask.probability, seed, step, place) for place in places]
    batch = data.batch(index, device, masked)
    shape = batch.chosen.shape[1:]
    if training.reference is None:
        sigma, noise = step_draws(config.sigma, seed, step, places, size, shape)
        return batch, sigma.to(device), noise.to(device)
    numbers = [draw_numbers(config.sigma, (first + place) // len(data)) for place in places]
    made = [
        stored_draws(config.sigma, seed, pair_key(data.pairs[i]), n, shape)
        for i, n in zip(index, numbers, strict=True)
    ]
    sigma, noise = (torch.stack(part).to(device) for part in zip(*made, strict=True))
    return batch, sigma, noise, training.reference.of(index, numbers, device)


def _gather(parts: list[Stats], engine: Engine) -> Stats:
    """Return the stats of all pairs of a step: of every micro-batch and rank."""
    whole = {name: torch.cat([part[name].double() for part in parts]) for name in parts[0]}
    if engine.world_size == 1:
        return whole
    table = torch.cat([value.flatten(1) if value.ndim > 1 else value[:, None]
                       for value in whole.values()], dim=1)  # fmt: skip
    ranks = [torch.empty_like(table) for _ in range(engine.world_size)]
    torch.distributed.all_gather(ranks, table)
    table = torch.cat(ranks)
    widths = [value[0].numel() for value in whole.values()]
    columns = table.split(widths, dim=1)
    return {
        name: column.reshape(len(table), *value.shape[1:])
        for (name, value), column in zip(whole.items(), columns, strict=True)
    }
