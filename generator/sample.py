"""Sampling of talking clips: noise, guidance, batches, and files with their record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ft2 import flow, media
from ft2.generator.config import ExpertConfig, GenerateConfig, GuidanceConfig
from ft2.generator.inputs import load_portrait, load_sound
from ft2.lora import Gate, SharedGate
from ft2.pairs import Condition, Generated
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel


class Gated(Protocol):
    """What sampling needs of a policy (``ft2.tlpo.policy.Policy`` is one)."""

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts' names, in the gate's order."""

    def gate(self, sigma: Tensor) -> Tensor:
        """Return expert weights [B, layers, K] at noise levels sigma [B]."""


def start_noise(key: str, seed: int, shape: Sequence[int]) -> Tensor:
    """Return the noise of one clip, float32 ``shape``: a function of key and seed alone."""
    digest = hashlib.sha256(f"{key}\n{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(tuple(shape), generator=generator)


def passes(guidance: GuidanceConfig, share: float) -> dict[str, float]:
    """Return the passes of a step and their coefficients, without those that are zero.

    With u (negative prompt, no audio), n (prompt, no audio) and c (prompt, audio),
    ``v = u + w_p (n - u) + w_a (c - n) = (1 - w_p) u + (w_p - w_a) n + w_a c``.

    Args:
        guidance: the strengths.
        share: how much of the sampling is done, in [0, 1); past ``audio_until`` w_a = w_p.
    """
    w_p = guidance.prompt
    w_a = guidance.audio if share < guidance.audio_until else w_p
    coefficients = {"negative": 1 - w_p, "silent": w_p - w_a, "full": w_a}
    return {name: value for name, value in coefficients.items() if abs(value) > 1e-9}


def guided_velocity(
    model: TalkingModel,
    x: Tensor,
    sigma: Tensor,
    cond: Conditioning,
    negative: Tensor | None,
    weights: Mapping[str, float],
    audio_scale: float,
    gate: Gate | None,
    identity_scale: float | None = None,
) -> Tensor:
    """Return the guided velocity, [B, C, f, h, w].

    Args:
        model: the talking model.
        x: noisy latents.
        sigma: noise levels, [B].
        cond: conditions.
        negative: embedding of the negative prompt, [1, T, D], if that pass is asked for.
        weights: passes and coefficients, as from :func:`passes`.
        audio_scale: strength of the audio branch in the full pass.
        gate: expert weights, [B, layers, K] or shared, or None.
        identity_scale: strength of the identity branch; None is the model's own.
    """
    known = None
    if identity_scale is not None:
        known = torch.full((len(x),), identity_scale, device=x.device)
    total: Tensor | None = None
    for name, weight in weights.items():
        given = cond
        if name == "negative":
            assert negative is not None
            given = cond.with_text(negative)
        silent = name != "full" or audio_scale == 0.0
        scale = torch.full((len(x),), audio_scale, device=x.device)
        part = weight * model.velocity(
            x, sigma, given, gate, scale, silent=silent, identity_scale=known
        )
        total = part if total is None else total + part
    assert total is not None
    return total


def expert_gate(policy: Gated | None, sigma: Tensor, strength: ExpertConfig) -> SharedGate | None:
    """Return the gate at one noise level sigma [B], each expert's weights times its strength.

    The samples of a batch are at the same level, so they share it and experts can be merged.
    """
    if policy is None:
        return None
    weights = policy.gate(sigma[:1])[0]
    factors = [getattr(strength, name, 1.0) for name in policy.experts]
    return SharedGate(weights * torch.tensor(factors).to(weights), strength.rounded)


@torch.no_grad()
def sample_latents(
    model: TalkingModel,
    cond: Conditioning,
    keys: Sequence[tuple[str, int]],
    config: GenerateConfig,
    policy: Gated | None = None,
    *,
    carried: Tensor | None = None,
    start: tuple[int, Tensor] | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Return sampled latents x, float32 [B, C, f, h, w].

    Args:
        model: the talking model.
        cond: conditions of the batch.
        keys: (condition, seed) of each item; they alone decide its noise.
        config: steps, shift, guidance.
        policy: gives the gate at each step; None samples the base.
        carried: latents of the first frames that are given, [B, C, k, h, w]; at every noise level
            they are exactly as noisy as the rest, and they end as given.
        start: step to begin with and the state there, as ``watch`` was told.
        watch: is told every step's number and state before it is taken.
    """
    shape = model.latent_shape()
    noise = torch.stack([start_noise(key, seed, shape) for key, seed in keys]).to(model.device)
    sigmas = flow.shifted_sigmas(config.steps, config.shift)
    order = {round(value, 6): index for index, value in enumerate(sigmas.tolist())}
    negative = None
    if "negative" in passes(config.guidance, 0.0) or "negative" in passes(config.guidance, 1.0):
        negative = model.encode_prompts([config.guidance.negative_prompt])

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        index = order[round(float(sigma[0]), 6)]
        if watch is not None:
            watch(index, x)
        weights = passes(config.guidance, index / config.steps)
        gate = expert_gate(policy, sigma, config.expert)
        v = guided_velocity(
            model, x, sigma, cond, negative, weights, config.audio_scale, gate,
            config.identity_scale,
        )  # fmt: skip
        if carried is not None:
            v[:, :, : carried.shape[2]] = noise[:, :, : carried.shape[2]] - carried
        return v

    step, x = (0, noise) if start is None else start
    return flow.euler_sample(velocity, x.to(noise), sigmas[step:])


@torch.no_grad()
def generate_batch(
    model: TalkingModel,
    cond: Conditioning,
    keys: Sequence[tuple[str, int]],
    config: GenerateConfig,
    policy: Gated | None = None,
) -> NDArray[np.uint8]:
    """Return sampled clips, uint8 [B, F, H, W, 3]; see :func:`sample_latents`.

    The batch is filled up to ``config.batch_size``, so that an item's numbers do not depend
    on how many others are sampled with it.
    """
    count, size = len(keys), max(config.batch_size, len(keys))
    filled = list(range(count)) + [count - 1] * (size - count)
    given = cond.select(filled)
    x = sample_latents(model, given, [keys[i] for i in filled], config, policy)
    frames = model.decode(x, given)[:count]
    return np.asarray(frames.cpu().numpy(), np.uint8)


class Sampler:
    """A model, a policy and settings that turn conditions into mp4 files.

    Attributes:
        name: what generates, for records.
    """

    def __init__(
        self,
        model: TalkingModel,
        config: GenerateConfig,
        policy: Gated | None = None,
        name: str = "base",
    ) -> None:
        """Join the parts; nothing is computed."""
        self.model, self.config, self.policy, self.name = model, config, policy, name

    def generate(
        self, conditions: Sequence[Condition], seeds: Sequence[int], output_dir: Path
    ) -> Iterator[Generated]:
        """Yield one mp4 under ``output_dir`` for every condition with every seed.

        The same condition and seed give the same file, whatever else is in the call.
        """
        output_dir.mkdir(parents=True, exist_ok=True)
        jobs = product(conditions, seeds)
        encoded: dict[str, tuple[Conditioning, NDArray[np.float32]]] = {}
        while part := list(islice(jobs, self.config.batch_size)):
            for condition, _ in part:
                if condition.condition_id not in encoded:
                    encoded[condition.condition_id] = self._encode(condition)
            cond = Conditioning.cat([encoded[item.condition_id][0] for item, _ in part])
            keys = [(item.condition_id, seed) for item, seed in part]
            clips = generate_batch(self.model, cond, keys, self.config, self.policy)
            for (condition, seed), frames in zip(part, clips, strict=True):
                path = output_dir / f"{condition.condition_id}-{seed:04d}.mp4"
                self.write(path, frames, encoded[condition.condition_id][1])
                yield Generated(condition.condition_id, seed, path)
            kept = {condition.condition_id for condition, _ in part}
            encoded = {name: value for name, value in encoded.items() if name in kept}

    def write(self, path: Path, frames: NDArray[np.uint8], audio: NDArray[np.float32]) -> None:
        """Write one clip uint8 [F, H, W, 3] with its sound."""
        clip = self.model.clip
        media.write_video(
            path, frames, clip.fps, audio, sample_rate=clip.sample_rate, crf=self.config.crf
        )

    def _encode(self, condition: Condition) -> tuple[Conditioning, NDArray[np.float32]]:
        clip = self.model.clip
        portrait = load_portrait(condition.portrait, clip, self.config.portrait_margin)
        audio, _ = load_sound(condition.audio, clip)
        motion = (self.config.motion.face, self.config.motion.body)
        cond = self.model.encode_condition(
            portrait, audio, condition.prompt, motion, self.config.whole_audio
        )
        return cond, audio
