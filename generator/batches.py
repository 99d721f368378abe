"""A step of base training: the flow-matching loss, and batches drawn from the seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ft2 import flow
from ft2.generator.cache import EMPTY, Encoded
from ft2.generator.config import TrainConfig
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.spec import Architecture


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
