"""The training loop that both stages share: steps, held-out evaluation, checkpoints, stopping."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from signal import SIGTERM
from typing import cast

import torch

from ft2.engine import Engine
from ft2.errors import Interrupted, RunError
from ft2.runs import Interrupts, Progress, RunDir, read_json, write_json
from ft2.tlpo.diagnostics import Alarm, AlarmWatch
from ft2.tlpo.update import Metrics, Training, look, train_step


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


def run_loop(training: Training, stage: str, progress: Progress) -> dict[str, object]:
    """Train until the last step or the stop rule, from the last checkpoint if there is one.

    Returns:
        ``steps``, ``stopped`` (why), and the first and last held-out evaluation.

    Raises:
        Interrupted: A signal came; a checkpoint is saved.
        RunError: The loss is not finite, or a checkpoint could not be written.
    """
    run, engine, device = training.run, training.engine, training.device
    held_out, loop, dpo = training.held_out, training.config.loop, training.config.dpo
    rule = StopRule(dpo.min_gradient_factor, dpo.stop_decay)
    step = _restore(run, engine, rule)
    run.rewind(step)
    start_file = run.path / "held_out_start.json"
    watch, found = AlarmWatch(), None
    with Interrupts() as interrupts:
        if step == 0:
            write_json(start_file, held_out(device))
        while step < loop.num_steps and not rule.stopped:
            start = time.monotonic()
            metrics, found = _evaluated_step(training, step, rule)
            step += 1
            run.log(step, **metrics, seconds=round(time.monotonic() - start, 3))
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


def _evaluated_step(
    training: Training, step: int, rule: StopRule
) -> tuple[Metrics, dict[str, object] | None]:
    """Do a step and return its metrics, and the held-out evaluation where it is due after it."""
    loop = training.config.loop
    metrics = train_step(training, step)
    rule.update(cast("float", metrics["gradient_factor"]))
    last = step + 1 == loop.num_steps or rule.stopped
    evaluation = last or (step + 1) % loop.eval_every == 0
    found = training.held_out(training.device) if evaluation else None
    metrics |= {f"held_out_{k}": v for k, v in (found or {}).items()}
    return metrics | look(training, evaluation=evaluation), found


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
