"""Base training of the talking transformer: flow matching, clip level and then frame level."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ft2.engine import Engine, make_engine
from ft2.errors import UsageError
from ft2.generator.average import Average
from ft2.generator.batches import FlowLoss, draw_batch
from ft2.generator.cache import Encoded
from ft2.generator.config import TrainConfig
from ft2.generator.data import read_clips
from ft2.generator.precompute import hash_list, training_data
from ft2.generator.prepare import Speech
from ft2.generator.start import check_training, starting_model
from ft2.runs import Interrupts, Progress, RunDir, Silent, load_tensors, save_tensors
from ft2.wan.branches import branch_of
from ft2.wan.model import TalkingModel
from ft2.wan.own import save_model

HINT = "go on with the same command and --resume"


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _save(run: RunDir, engine: Engine, average: Average | None, step: int) -> None:
    with run.checkpoint(step) as folder:
        engine.save(folder)
        if average is not None and run.writes:
            count = {"count": str(average.count)}
            save_tensors(folder / "average.safetensors", average.tensors, count)


def _restore(run: RunDir, engine: Engine, average: Average | None) -> int:
    latest = run.latest()
    if latest is None:
        run.rewind(0)
        return 0
    step, folder = latest
    engine.load(folder)
    if average is not None:
        tensors, metadata = load_tensors(folder / "average.safetensors")
        average.load(tensors, int(metadata["count"]))
    run.rewind(step)
    return step


def set_trainable(model: TalkingModel, freeze_base: bool) -> None:
    """Let the transformer be trained: all of it, or only its branches."""
    model.dit.train()
    for name, parameter in model.dit.named_parameters():
        parameter.requires_grad_(not freeze_base or branch_of(name) is not None)


def train_generator(
    config: TrainConfig,
    output: Path,
    *,
    resume: bool = False,
    speech: Callable[[], Sequence[Speech]] = tuple,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Train one stage and return its result, which also lies in ``result.json``.

    Args:
        config: the stage.
        output: run directory; ``model/`` in it gets the averaged weights.
        resume: go on in an existing run directory.
        speech: gives utterances with phones; called only when training starts from nothing.
        progress: is told how far it is.

    Raises:
        UsageError: if the data or the start is missing.
        Interrupted: on SIGINT or SIGTERM, after a checkpoint.
    """
    progress = progress or Silent()
    clips = read_clips(config.data, known=hash_list(config, output))
    check_training(config, clips)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return dict(run.result)
    model = starting_model(config, clips, speech, run, progress)
    data = training_data(config, model, clips, run, progress)
    set_trainable(model, config.freeze_base)
    if config.compile:
        for block in model.dit.blocks:
            block.compile()
    engine = make_engine(config.engine, FlowLoss(model), run.path)
    average = Average(model.dit, config.ema_decay) if config.ema_decay else None
    start = _restore(run, engine, average)
    _loop(config, run, engine, average, data, model, start, progress)
    result: dict[str, object] = {
        "steps": config.steps,
        "clips": len(clips),
        "parameters": sum(p.numel() for p in model.dit.parameters()),
        "trained": sum(p.numel() for p in model.dit.parameters() if p.requires_grad),
        "branches": list(model.branches),
    }
    with engine.gathered():
        if run.writes:
            if average is not None:
                average.copy_to(model.dit)
            save_model(model, run.path / "model", {"result": result, "data": clips.fingerprint})
            run.finish(result)
    engine.close()
    model.dit.eval().requires_grad_(False)
    return result


def _loop(
    config: TrainConfig,
    run: RunDir,
    engine: Engine,
    average: Average | None,
    data: Encoded,
    model: TalkingModel,
    start: int,
    progress: Progress,
) -> None:
    """Run the steps from ``start``; every draw depends on the seed and the step alone."""
    saved = time.monotonic()
    with Interrupts() as interrupts:
        for step in range(start, config.steps):
            began, losses = time.monotonic(), []
            for micro in range(config.engine.accumulation_steps):
                seed = _seed(config.seed, config.stage, step, micro, engine.rank)
                batch = draw_batch(config, data, model.architecture, seed)
                loss = engine(*batch.to(model.device).arguments())
                engine.backward(loss)
                losses.append(loss.item())
            info = engine.step()
            if average is not None:
                average.update(engine.module.dit)  # type: ignore[arg-type]
            loss_now = float(np.mean(losses))
            if not np.isfinite(loss_now):
                raise UsageError(f"the loss is {loss_now} at step {step}", "lower learning_rate")
            run.log(
                step + 1,
                loss=loss_now,
                grad_norm=info.grad_norm,
                seconds=round(time.monotonic() - began, 4),
            )
            progress.update(f"train {config.stage}", step + 1, config.steps, f"loss {loss_now:.4f}")
            due = time.monotonic() - saved > config.checkpoint_seconds
            if due or interrupts.pending or step + 1 == config.steps:
                _save(run, engine, average, step + 1)
                saved = time.monotonic()
            interrupts.check(HINT)
