"""Base training of a nano Thinker: towers on dense targets, then the language model.

A nano model has no pretraining to stand on, so this gives it one: stage ``towers`` teaches each
tower to measure (head pose, mouth, defects; the mouth that a voice asks for), stage ``model``
trains everything with plain questions and with readers on a *middle* layer, above all the
difference between the mouth shown and the mouth asked for, without which lip sync stays at chance.
"""

import time
from pathlib import Path

import torch

from ft2.critic import heads as hd
from ft2.critic.arrays import Sampler
from ft2.critic.base_losses import model_loss, tower_loss
from ft2.critic.base_state import (
    PretrainConfig,
    State,
    load_state,
    make_state,
    parameters,
    save_state,
    stage_of,
)
from ft2.runs import Interrupts, Progress, RunDir, check_output

__all__ = ["PretrainConfig", "held_out_losses", "pretrain", "train_step"]


def train_step(state: State, step: int) -> dict[str, float]:
    """Make one update; return its losses."""
    stage, rate = stage_of(state.config, step)
    batch = state.sampler.batch(step, state.config.batch_size)
    losses = tower_loss(state, batch) if stage == "towers" else model_loss(state, batch, step)
    total = torch.stack([value.float() for value in losses.values()]).sum()
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(list(parameters(state)), 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    record = {name: float(value.detach()) for name, value in losses.items()}
    return record | {"loss": float(total.detach())}


def pretrain(
    config: PretrainConfig, output: Path, resume: bool, progress: Progress
) -> dict[str, object]:
    """Train a base and write ``thinker.safetensors`` with its processor files.

    Args:
        config: What to do.
        output: Run directory.
        resume: Go on after an interruption; a finished run is left as it is.
        progress: Told of every step.

    Returns:
        Steps, seconds and losses on held-out clips, also in ``result.json``.

    Raises:
        UsageError: The data are missing or of another format; the run directory exists.
        Interrupted: A signal came; the last checkpoint is complete.
    """
    from ft2.critic.arrays import load_arrays
    from ft2.qwen.thinker import save_thinker

    check_output(output, resume=resume)
    train = load_arrays(Path(config.data) / "train", config.model)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return dict(run.result)
    state = make_state(config, train)
    first = _resume(run, state)
    total = config.towers_steps + config.model_steps
    started = time.monotonic()
    with Interrupts() as interrupts:
        for step in range(first, total):
            losses = train_step(state, step)
            run.log(step + 1, seconds=time.monotonic() - started, **losses)
            stage = stage_of(config, step)[0]
            progress.update(f"base {stage}", step + 1, total, f"loss {losses['loss']:.3f}")
            if (step + 1) % config.checkpoint_steps == 0 or step + 1 == total or interrupts.pending:
                with run.checkpoint(step + 1) as directory:
                    save_state(state, directory)
            interrupts.check(f"go on with: ft2 critic pretrain ... -o {output} --resume")
    result: dict[str, object] = {
        "steps": total,
        "seconds": round(time.monotonic() - started, 1),
        "clips": len(state.sampler.arrays),
        "seen": hd.SEEN,
        "held_out": held_out_losses(state, Path(config.data) / "dev"),
    }
    save_thinker(state.thinker.eval(), state.processor, output / "weights")
    run.finish(result)
    return result


def _resume(run: RunDir, state: State) -> int:
    latest = run.latest()
    if latest is None:
        run.rewind(0)
        return 0
    step, directory = latest
    load_state(state, directory)
    run.rewind(step)
    return step


@torch.no_grad()
def held_out_losses(state: State, path: Path, limit: int = 256) -> dict[str, float]:
    """Return the mean losses of the model stage on clips that were not trained on."""
    from ft2.critic.arrays import load_arrays

    if not path.is_dir():
        return {}
    arrays = load_arrays(path, state.config.model)
    sampler = Sampler(arrays, state.config.model, state.config.seed)
    total: dict[str, float] = {}
    count = max(1, min(limit, len(arrays)) // state.config.batch_size)
    for number in range(count):
        first = number * state.config.batch_size
        index = torch.arange(first, min(first + state.config.batch_size, len(arrays)))
        for name, value in model_loss(state, sampler.plain(index), number).items():
            total[name] = total.get(name, 0.0) + float(value) / count
    return total
