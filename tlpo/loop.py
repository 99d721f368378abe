"""The training loop that both stages share: steps, held-out evaluation, checkpoints, stopping."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from signal import SIGTERM
from typing import Any, cast

import torch
from torch import Tensor

from ft2.config import EngineConfig
from ft2.engine import Engine, autocast
from ft2.errors import Interrupted, RunError
from ft2.runs import Interrupts, Progress, RunDir, read_json, write_json
from ft2.tlpo.config import LoopConfig, StageConfig
from ft2.tlpo.data import PairData
from ft2.tlpo.diagnostics import Alarm, AlarmWatch, step_metrics
from ft2.tlpo.dpo import implicit_accuracy
from ft2.tlpo.draws import (
    draw_numbers,
    evaluation_noise,
    pair_order,
    step_draws,
    stored_draws,
    use_mask,
)
from ft2.tlpo.reference import StoredReference, pair_key
from ft2.tlpo.step import PreferenceStep, Stats

Metrics = dict[str, Any]


@dataclass
class StopRule:
    """Exponential mean of the gradient factor; the run ends when it falls too low."""

    limit: float
    decay: float
    total: float = 0.0
    weight: float = 0.0
    stopped: bool = False

    def update(self, factor: float) -> None:
        """Add one step's factor; set ``stopped`` when training should end."""
        self.total = self.decay * self.total + (1 - self.decay) * factor
        self.weight = self.decay * self.weight + (1 - self.decay)
        self.stopped = self.weight > 0.5 and self.total / self.weight < self.limit


class HeldOut:
    """Evaluation on pairs of unseen conditions, at fixed noise levels and with fixed noise.

    It uses no global random state, and keeps the reference's errors after the first time.
    """

    def __init__(
        self, step: PreferenceStep, data: PairData, config: LoopConfig, engine: EngineConfig
    ) -> None:
        """Take at most ``config.eval_pairs`` pairs of ``data``, in order."""
        self._step, self._data, self._config = step, data, config
        self._engine, self._batch = engine, engine.micro_batch_size
        self._count = min(len(data), config.eval_pairs)
        self._reference: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def __call__(self, device: torch.device) -> dict[str, object]:
        """Return the results by name; only ``pairs`` if there are none.

        They are ``implicit_accuracy`` (errors averaged over noise levels), ``d_chosen``,
        ``d_rejected``, and ``accuracy_by_sigma`` in the order of ``config.eval_sigmas``.
        """
        if not self._count:
            return {"pairs": 0}
        sides: list[tuple[Tensor, Tensor]] = []
        for number, start in enumerate(range(0, self._count, self._batch)):
            index = list(range(start, min(start + self._batch, self._count)))
            sides.append(self._differences(number, index, device))
        d_chosen, d_rejected = (torch.cat(side).double().cpu() for side in zip(*sides, strict=True))
        by_sigma = implicit_accuracy(d_chosen, d_rejected).mean(0)
        accuracy = implicit_accuracy(d_chosen.mean(1), d_rejected.mean(1))
        return {
            "pairs": self._count,
            "implicit_accuracy": float(accuracy.mean()),
            "d_chosen": float(d_chosen.mean()),
            "d_rejected": float(d_rejected.mean()),
            "accuracy_by_sigma": [float(value) for value in by_sigma],
        }

    def _differences(
        self, number: int, index: list[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        batch = self._data.batch(index, device)
        levels = torch.tensor(self._config.eval_sigmas)
        sigma = levels.expand(len(index), -1).to(device)
        noise = torch.stack([
            evaluation_noise(self._config.seed, self._data.pairs[i].pair_id, len(levels),
                             batch.chosen.shape[1:])
            for i in index
        ]).to(device)  # fmt: skip
        with autocast(self._engine, device.type):
            if len(self._reference) <= number:
                self._reference.append(self._step.reference_errors(batch, sigma, noise))
            policy = self._step.policy_errors(batch, sigma, noise)
        reference = self._reference[number]
        return policy[0] - reference[0], policy[1] - reference[1]


@dataclass(frozen=True)
class Training:
    """What the loop trains with."""

    run: RunDir
    engine: Engine
    data: PairData
    held_out: HeldOut
    config: StageConfig
    device: torch.device
    reference: StoredReference | None = None
    """The reference's errors on stored draws, where they are kept."""


def train_step(training: Training, step: int) -> Metrics:
    """Do one optimiser step and return the metrics of its pairs, over micro-batches and ranks.

    Raises:
        RunError: The loss is not finite; nothing was updated.
    """
    config, engine = training.config, training.engine
    micro, accumulation = config.engine.micro_batch_size, config.engine.accumulation_steps
    size = micro * accumulation * engine.world_size
    parts = []
    for turn in range(accumulation):
        first = (turn * engine.world_size + engine.rank) * micro
        loss, stats = engine(*_inputs(training, step, list(range(first, first + micro)), size))
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
    return {**metrics, "grad_norm": info.grad_norm, "learning_rate": info.learning_rate}


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


def run_loop(training: Training, stage: str, progress: Progress) -> dict[str, object]:
    """Train until the last step or the stop rule, from the last checkpoint if there is one.

    Returns:
        ``steps``, ``stopped`` (why), and the first and last held-out evaluation.

    Raises:
        Interrupted: A signal came; a checkpoint is saved.
        RunError: The loss is not finite, or a checkpoint could not be written.
    """
    run, engine, held_out = training.run, training.engine, training.held_out
    device, loop, dpo = training.device, training.config.loop, training.config.dpo
    rule = StopRule(dpo.min_gradient_factor, dpo.stop_decay)
    step = _restore(run, engine, rule)
    run.rewind(step)
    start_file = run.path / "held_out_start.json"
    watch, found = AlarmWatch(), None
    with Interrupts() as interrupts:
        if step == 0:
            write_json(start_file, held_out(device))
        while step < loop.num_steps and not rule.stopped:
            clock = time.monotonic()
            metrics = train_step(training, step)
            step += 1
            rule.update(cast("float", metrics["gradient_factor"]))
            found = held_out(device) if step % loop.eval_every == 0 else None
            values = metrics | {f"held_out_{k}": v for k, v in (found or {}).items()}
            run.log(step, **values, seconds=round(time.monotonic() - clock, 3))
            alarms = watch.update({"step": step, **metrics})
            progress.update(stage, step, loop.num_steps, _note(metrics, alarms))
            signal = _any_rank(interrupts.pending is not None, engine, device)
            due = step % loop.checkpoint_every == 0 or step == loop.num_steps
            if signal or due or rule.stopped:
                _save(training, rule, step)
            if signal:
                hint = f"a checkpoint of step {step} is saved; go on with --resume"
                interrupts.check(hint)
                raise Interrupted(SIGTERM, hint)
    return {
        "steps": step,
        "stopped": f"gradient factor below {rule.limit}" if rule.stopped else "last step",
        "held_out_start": read_json(start_file),
        "held_out": found or held_out(device),
    }


def _note(metrics: Metrics, alarms: Sequence[Alarm]) -> str:
    if alarms:
        return f"ALARM: {alarms[0].text}; {alarms[0].advice}"
    accuracy = metrics.get("implicit_accuracy", 0.5)
    return f"loss {metrics['loss']:.3f}, implicit accuracy {accuracy:.2f}"


def _any_rank(flag: bool, engine: Engine, device: torch.device) -> bool:
    if engine.world_size == 1:
        return flag
    total = torch.tensor([float(flag)], device=device)
    torch.distributed.all_reduce(total)
    return bool(total.item())


def _save(training: Training, rule: StopRule, step: int) -> None:
    """Write a checkpoint: engine, stop rule, and how far the pairs and draws have been used."""
    run, engine, config = training.run, training.engine, training.config.engine
    size = config.micro_batch_size * config.accumulation_steps * engine.world_size
    epoch, place = divmod(step * size, len(training.data))
    state = {"step": step, **asdict(rule), "cursor": {"epoch": epoch, "place": place}}
    try:
        with run.checkpoint(step) as folder:
            engine.save(folder)
            if engine.rank == 0:
                write_json(folder / "loop.json", state)
    except (OSError, RuntimeError) as error:
        latest = run.latest()
        kept = f"the checkpoint of step {latest[0]} is whole" if latest else "there is none yet"
        raise RunError(
            f"the checkpoint of step {step} could not be written: {error}",
            f"make room on the disk, then go on with --resume; {kept}",
        ) from error


def _restore(run: RunDir, engine: Engine, rule: StopRule) -> int:
    """Load the newest checkpoint into engine and rule and return its step, or 0."""
    latest = run.latest()
    if latest is None:
        return 0
    step, folder = latest
    engine.load(folder)
    state = read_json(folder / "loop.json")
    rule.total, rule.weight, rule.stopped = state["total"], state["weight"], state["stopped"]
    return step
