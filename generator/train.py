"""Base training of the talking transformer: flow matching, clip level and then frame level."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ft2 import flow
from ft2.engine import Engine, make_engine
from ft2.errors import UsageError
from ft2.generator.average import Average
from ft2.generator.cache import EMPTY, Encoded
from ft2.generator.config import TrainConfig
from ft2.generator.data import read_clips
from ft2.generator.precompute import hash_list, training_data
from ft2.generator.prepare import Speech
from ft2.generator.start import check_training, starting_model
from ft2.runs import Interrupts, Progress, RunDir, Silent, load_tensors, save_tensors
from ft2.wan.branches import branch_of
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.own import save_model
from ft2.wan.spec import Architecture

HINT = "go on with the same command and --resume"


class FlowLoss(nn.Module):
    """The weighted flow-matching loss of a batch; its parameters are the transformer's."""

    def __init__(self, model: TalkingModel) -> None:
        """Hold the model; only the transformer is registered."""
        super().__init__()
        self.dit = model.dit
        self._model = model

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        audio_scale: Tensor,
        weight: Tensor,
        identity_scale: Tensor,
    ) -> Tensor:
        """Return the mean of weight * (velocity - target)^2.

        Args:
            x: clean latents, [B, C, f, h, w].
            noise: standard normal, of the same shape.
            sigma: noise levels, [B].
            cond: conditions of the batch.
            audio_scale: 0 where the audio is dropped, else 1, [B].
            weight: loss weights of mean about 1 that broadcast over x.
            identity_scale: strength of the identity branch, 0 where it is dropped, [B].
        """
        noisy = flow.add_noise(x, noise, sigma)
        out = self._model.velocity(
            noisy, sigma, cond, audio_scale=audio_scale, identity_scale=identity_scale
        )
        error = (out.float() - flow.velocity_target(x, noise)).square()
        return (weight * error).mean()


@dataclass(frozen=True)
class Batch:
    """What one micro-batch is made of; drawn from the seed and the step alone."""

    x: Tensor
    noise: Tensor
    sigma: Tensor
    cond: Conditioning
    audio_scale: Tensor
    weight: Tensor
    identity_scale: Tensor

    def arguments(self) -> tuple[object, ...]:
        """Return the arguments of :class:`FlowLoss`."""
        given = (self.x, self.noise, self.sigma, self.cond, self.audio_scale, self.weight)
        return *given, self.identity_scale

    def to(self, device: torch.device) -> Batch:
        """Move everything to a device."""
        return Batch(*(part.to(device) for part in self.arguments()))  # type: ignore[attr-defined]


def draw_batch(config: TrainConfig, data: Encoded, architecture: Architecture, seed: int) -> Batch:
    """Draw a micro-batch: clips, noise, noise levels, dropped conditions, loss weights."""
    generator = torch.Generator().manual_seed(seed)
    size = config.engine.micro_batch_size
    index = torch.randint(len(data), (size,), generator=generator)
    sigma = flow.sample_sigmas(
        size,
        generator,
        mean=config.sigma.mean,
        std=config.sigma.std,
        shift=config.sigma.shift,
        stratified=True,
    )
    rows = data.rows(index)
    x = rows["x"]
    noise = torch.randn(x.shape, generator=generator)
    drop = torch.rand(size, 3, generator=generator)
    coin = torch.rand(2, generator=generator).tolist()
    whole = config.stage == "clip" or coin[0] < config.whole_audio_probability
    cond = data.conditioning(rows, index, architecture, whole)
    dropped = (drop[:, 0] < config.dropout.text)[:, None, None]
    cond.text.copy_(torch.where(dropped, data.prompts([EMPTY]), cond.text))
    cond.image[drop[:, 1] < config.dropout.image] = 0
    audio_scale = (drop[:, 2] >= config.dropout.audio).float()
    weight = torch.ones(1, 1, 1, 1, 1)
    if config.stage == "frame" and coin[1] < config.lip_probability:
        weight = lip_weights(rows["lips"], config.lip_background)
    known = torch.rand(size, generator=generator) >= config.dropout.identity
    identity_scale = architecture.identity.scale * known.float()
    blind = torch.rand(size, generator=generator) < config.dropout.picture
    cond.image[blind] = 0
    cond.latents_mask_y[blind, 4:] = 0
    return Batch(x, noise, sigma, cond, audio_scale, weight, identity_scale)


def lip_weights(lips: Tensor, background: float) -> Tensor:
    """Return loss weights [B, 1, f, h, w] of mean 1 from lip positions [B, f, h, w] in [0, 1]."""
    weight = background + (1 - background) * lips
    return (weight / weight.mean())[:, None]


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
