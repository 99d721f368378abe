"""The critic's optimiser loop: checkpoints, held-out accuracy, exact resume, many processes."""

import math
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM

import numpy as np
import torch
from torch import Tensor

from ft2.critic.config import CriticConfig
from ft2.critic.held_out import Best, HeldOut
from ft2.critic.objective import AnswerLoss, ScoreLoss
from ft2.critic.odds import log_odds
from ft2.engine import Engine, make_engine, mean_over_ranks
from ft2.errors import Interrupted, RunError
from ft2.runs import Interrupts, Progress, RunDir

Batches = Callable[[int], tuple[Tensor, Tensor, Tensor]]
"""Micro-batch number `place`: video tokens, audio tokens, labels."""


def optimise(
    config: CriticConfig,
    run: RunDir,
    loss: AnswerLoss | ScoreLoss,
    batches: Batches,
    held_out: HeldOut | None,
    progress: Progress,
) -> tuple[Best, float]:
    """Run the optimiser's steps; return the weights to keep and the mean loss of the last fifty.

    Raises:
        RunError: The loss is not a number; the last checkpoint is kept.
        Interrupted: A signal came; a checkpoint was written first.
    """
    settings = config.engine
    if settings.decay_steps == 0:
        settings = settings.model_copy(update={"decay_steps": config.steps})
    engine = make_engine(settings, loss.train(), run.path)
    try:
        return _steps(config, run, engine, loss, batches, held_out, progress)
    finally:
        engine.close()
        loss.eval()


def _steps(
    config: CriticConfig,
    run: RunDir,
    engine: Engine,
    loss: AnswerLoss | ScoreLoss,
    batches: Batches,
    held_out: HeldOut | None,
    progress: Progress,
) -> tuple[Best, float]:
    first, best = _start(run, engine)
    recent: list[float] = []
    with Interrupts() as interrupts:
        for step in range(first + 1, config.steps + 1):
            metrics = _step(engine, config, batches, step - 1, run.path)
            recent = [*recent[-49:], metrics["loss"]]
            stop = _any_rank(interrupts.pending is not None, loss)
            last = step == config.steps
            due = last or step % config.checkpoint_steps == 0
            if last or (due and config.keep == "best"):
                found = _judge(engine, loss, held_out, best, step)
                metrics |= {f"held_out_{name}": value for name, value in found.items()}
            run.log(step, **metrics)
            progress.update("train critic", step, config.steps, f"loss {np.mean(recent):.3f}")
            if due or stop:
                with run.checkpoint(step) as directory:
                    engine.save(directory)
                    if run.writes:
                        best.save(directory)
            if stop:
                hint = f"go on with --resume -o {run.path}"
                interrupts.check(hint)
                raise Interrupted(SIGTERM, hint)
    return best, float(np.mean(recent)) if recent else float("nan")


def _any_rank(flag: bool, loss: AnswerLoss | ScoreLoss) -> bool:
    value = torch.tensor(float(flag), device=next(loss.parameters()).device)
    return bool(mean_over_ranks(value) > 0)


def _start(run: RunDir, engine: Engine) -> tuple[int, Best]:
    """Return the steps done and the best weights so far, from the newest checkpoint."""
    latest = run.latest()
    if latest is None:
        run.rewind(0)
        return 0, Best()
    step, directory = latest
    engine.load(directory)
    run.rewind(step)
    return step, Best.load(directory)


def _judge(
    engine: Engine,
    loss: AnswerLoss | ScoreLoss,
    held_out: HeldOut | None,
    best: Best,
    step: int,
) -> dict[str, float]:
    """Return the held-out accuracy of the current weights, after offering them to `best`."""
    odds, found = None, {}
    if held_out is not None:
        odds = log_odds(loss.eval().model, loss.layout, held_out.tokens)
        found = held_out.accuracy(odds)
        loss.train()
    with engine.gathered():
        best.offer(step, loss, found, odds)
    return found


def _step(
    engine: Engine, config: CriticConfig, batches: Batches, step: int, path: Path
) -> dict[str, float]:
    """Make one update; return its loss, mean over processes, learning rate and gradient norm."""
    total = 0.0
    parts = config.engine.accumulation_steps
    for part in range(parts):
        place = (step * parts + part) * engine.world_size + engine.rank
        value = engine(*batches(place))
        engine.backward(value)
        total += float(mean_over_ranks(value.detach())) / parts
    if not math.isfinite(total):
        raise RunError(
            f"the loss at step {step + 1} is {total}",
            f"lower engine.learning_rate and start anew, or look at {path / 'metrics.jsonl'}",
        )
    info = engine.step()
    return {"loss": total, "learning_rate": info.learning_rate, "grad_norm": info.grad_norm}
