"""Base training of the talking transformer: flow matching, clip level and then frame level."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ft2 import flow
from ft2.engine import Engine, make_engine
from ft2.errors import UsageError
from ft2.generator.config import TrainConfig
from ft2.generator.data import Clips, Encoded, cached_encoding, read_clips
from ft2.generator.prepare import Speech, prepare_model
from ft2.runs import Interrupts, Progress, RunDir, Silent, load_tensors, save_tensors
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.spec import Architecture, WanSpec
from ft2.wan.weights import load_talking_model, read_architecture, save_model

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
    ) -> Tensor:
        """Return the mean of weight * (velocity - target)^2.

        Args:
            x: clean latents, [B, C, f, h, w].
            noise: standard normal, of the same shape.
            sigma: noise levels, [B].
            cond: conditions of the batch.
            audio_scale: 0 where the audio is dropped, else 1, [B].
            weight: loss weights of mean about 1 that broadcast over x.
        """
        noisy = flow.add_noise(x, noise, sigma)
        out = self._model.velocity(noisy, sigma, cond, audio_scale=audio_scale)
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

    def arguments(self) -> tuple[object, ...]:
        """Return the arguments of :class:`FlowLoss`."""
        return self.x, self.noise, self.sigma, self.cond, self.audio_scale, self.weight


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
    x = data.x[index].float()
    noise = torch.randn(x.shape, generator=generator)
    drop = torch.rand(size, 3, generator=generator)
    coin = torch.rand(2, generator=generator).tolist()
    whole = config.stage == "clip" or coin[0] < config.whole_audio_probability
    cond = data.conditioning(index, architecture, whole)
    dropped = (drop[:, 0] < config.dropout.text)[:, None, None]
    cond.text.copy_(torch.where(dropped, data.texts[:1].float(), cond.text))
    cond.image[drop[:, 1] < config.dropout.image] = 0
    audio_scale = (drop[:, 2] >= config.dropout.audio).float()
    weight = torch.ones(1, 1, 1, 1, 1)
    if config.stage == "frame" and coin[1] < config.lip_probability:
        weight = lip_weights(data.lips[index], config.lip_background)
    return Batch(x, noise, sigma, cond, audio_scale, weight)


def lip_weights(lips: Tensor, background: float) -> Tensor:
    """Return loss weights [B, 1, 1, h, w] of mean 1 from lip positions [B, h, w] in {0, 1}."""
    weight = background + (1 - background) * lips
    return (weight / weight.mean())[:, None, None]


class Average:
    """Exponential moving average of the transformer's weights, with a warm-up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start from the current weights."""
        self.decay, self.count = decay, 0
        self.tensors = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the current weights."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        current = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self.tensors.values()), [current[name] for name in self.tensors], 1 - decay
        )

    def load(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Restore what was saved."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
        self.count = count

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into a module."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.tensors[name])


def starting_model(
    config: TrainConfig,
    clips: Clips,
    speech: Callable[[], Sequence[Speech]],
    run: RunDir,
    progress: Progress,
) -> TalkingModel:
    """Return the model to train: an earlier stage's, a saved one, or one made from nothing.

    What is made from nothing is kept in ``RUN/prepared`` and found again on resume.
    """
    if config.start is not None:
        path = Path(config.start) / "model"
        if not path.is_dir():
            raise UsageError(
                f"'{config.start}' holds no finished stage (no model/)", "finish it with --resume"
            )
        return load_talking_model(WanSpec(weights=str(path)))
    if config.model.weights != "none":
        return load_talking_model(config.model)
    prepared = run.path / "prepared"
    if not (prepared / "provenance.json").is_file():
        architecture = read_architecture(config.model)
        model, figures = prepare_model(
            config.model, architecture, clips, speech(), config.prepare, config.seed, progress
        )
        save_model(model, prepared, {"figures": figures, "data": clips.fingerprint})
    return load_talking_model(WanSpec(weights=str(prepared)))


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _save(run: RunDir, engine: Engine, average: Average, step: int) -> None:
    with run.checkpoint(step) as folder:
        engine.save(folder)
        save_tensors(folder / "average.safetensors", average.tensors, {"count": str(average.count)})


def _restore(run: RunDir, engine: Engine, average: Average) -> int:
    latest = run.latest()
    if latest is None:
        run.rewind(0)
        return 0
    step, folder = latest
    engine.load(folder)
    tensors, metadata = load_tensors(folder / "average.safetensors")
    average.load(tensors, int(metadata["count"]))
    run.rewind(step)
    return step


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
    clips = read_clips(config.data)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return dict(run.result)
    model = starting_model(config, clips, speech, run, progress)
    places = [run.path] + ([Path(config.start)] if config.start else [])
    data = cached_encoding(
        model,
        clips,
        [p / "encoded.safetensors" for p in places],
        config.lip_source == "landmarks",
        progress,
    )
    model.dit.train().requires_grad_(True)
    if config.compile:
        for block in model.dit.blocks:
            block.compile()
    engine = make_engine(config.engine, FlowLoss(model), run.path)
    average = Average(model.dit, config.ema_decay)
    start = _restore(run, engine, average)
    _loop(config, run, engine, average, data, model.architecture, start, progress)
    average.copy_to(model.dit)
    model.dit.eval().requires_grad_(False)
    result: dict[str, object] = {
        "steps": config.steps,
        "clips": len(clips),
        "parameters": sum(p.numel() for p in model.dit.parameters()),
    }
    save_model(model, run.path / "model", {"result": result, "data": clips.fingerprint})
    run.finish(result)
    return result


def _loop(
    config: TrainConfig,
    run: RunDir,
    engine: Engine,
    average: Average,
    data: Encoded,
    architecture: Architecture,
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
                batch = draw_batch(config, data, architecture, seed)
                loss = engine(*batch.arguments())
                engine.backward(loss)
                losses.append(loss.item())
            info = engine.step()
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
