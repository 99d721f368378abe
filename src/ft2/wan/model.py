"""The talking model: encoders, codec and transformer behind four methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.flow import TIMESTEP_SCALE
from ft2.lora import Gate
from ft2.wan.audio import heard_audio
from ft2.wan.codec import Codec
from ft2.wan.condition import Conditioning
from ft2.wan.dit import TalkingTransformer
from ft2.wan.encoders import (
    SpeechTower,
    encode_image,
    encode_text,
    log_mel_tokens,
    wav2vec2_tokens,
)
from ft2.wan.face import FaceEncoder
from ft2.wan.intensity import NEUTRAL
from ft2.wan.space import LatentSpace, gaussian_skip
from ft2.wan.spec import Architecture, Branch, WanSpec


class TalkingModel:
    """Everything a generator or a trainer asks of the model.

    Attributes:
        clip: the clips it makes.
        dit: the transformer; experts are installed into it.
        codec: encodes and decodes raw latents.
        space: map between raw latents and ``x``.
        num_layers: transformer blocks, the gate's second dimension.
    """

    def __init__(
        self,
        spec: WanSpec,
        architecture: Architecture,
        dit: TalkingTransformer,
        codec: Codec,
        space: LatentSpace,
        text: nn.Module,
        tokenizer: object,
        image: nn.Module,
        speech: nn.Module | None,
        face: FaceEncoder | None = None,
    ) -> None:
        """Join loaded parts; see ``ft2.wan.weights.load_talking_model``."""
        self.spec, self.architecture = spec, architecture
        self.clip: ClipFormat = architecture.clip
        self.dit, self.codec, self.space = dit, codec, space
        self.text, self.tokenizer, self.image, self.speech = text, tokenizer, image, speech
        self.face = face
        self.num_layers = architecture.dit.num_layers
        self.compute: torch.device | None = None
        self.visiting: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Device on which the transformer computes (``compute``, or where its weights lie)."""
        return self.compute or next(self.dit.parameters()).device

    @contextmanager
    def _at_work(self, part: object) -> Iterator[None]:
        """Have a part that only visits its device (``visiting``) there while it is used."""
        module = getattr(part, "vae", part)
        if self.visiting is None or not isinstance(module, nn.Module):
            yield
            return
        module.to(self.visiting)
        try:
            yield
        finally:
            module.to("cpu")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The networks beside the audio branch that the transformer has."""
        there = {"identity": self.dit.identity, "motion": self.dit.intensity}
        return tuple(name for name, part in there.items() if part is not None)  # type: ignore[misc]

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Return the shape [C, f, h, w] of one clip's latents."""
        channels = self.architecture.latent.channels
        return channels, self.clip.num_latent_frames, self.clip.height // 8, self.clip.width // 8

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Return prompt embeddings [B, T, D], zero beyond each prompt's end."""
        spec = self.architecture.text
        with self._at_work(self.text):
            return encode_text(self.text, self.tokenizer, prompts, spec.max_tokens)

    def encode_audio(
        self, audios: list[NDArray[np.float32]], whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return audio windows [B, F, L, D] and their mask for clips of the model's length.

        Args:
            audios: mono sound, each exactly ``clip.num_samples`` long.
            whole: give every token the whole clip (one window) instead.

        Raises:
            UsageError: if a sound has another length or a value that is not finite.
        """
        for audio in audios:
            if len(audio) != self.clip.num_samples or not np.isfinite(audio).all():
                raise UsageError(
                    f"the audio has {len(audio)} samples (finite: {np.isfinite(audio).all()}),"
                    f" the model takes {self.clip.num_samples}",
                    "pad it with silence or cut it first",
                )
        spec = self.architecture.audio
        with self._at_work(self.speech):
            if spec.kind == "wav2vec2":
                assert self.speech is not None
                tokens = wav2vec2_tokens(self.speech, audios)
            else:
                assert self.speech is None or isinstance(self.speech, SpeechTower)
                tokens = log_mel_tokens(self.speech, audios, spec)
        return heard_audio(tokens, self.clip.num_frames, whole=whole, place=spec.place)

    def encode_conditions(
        self,
        portraits: NDArray[np.uint8],
        audios: list[NDArray[np.float32]],
        prompts: list[str],
        whole_audio: bool = False,
        motion: tuple[float, float] = (NEUTRAL, NEUTRAL),
    ) -> Conditioning:
        """Encode a batch of conditions.

        Args:
            portraits: aligned pictures of the clip's size, uint8 [B, H, W, 3].
            audios: sounds of exactly ``clip.num_samples`` samples.
            prompts: captions.
            whole_audio: clip-level audio, one window for all tokens.
            motion: strengths omega of face and body motion in [0, 1], for all of the batch.
        """
        reference = torch.from_numpy(np.ascontiguousarray(portraits))
        wanted = (self.clip.height, self.clip.width, 3)
        if reference.dtype != torch.uint8 or reference.shape[1:] != wanted:
            raise UsageError(
                f"the portrait is {tuple(reference.shape[1:])} {reference.dtype},"
                f" the model takes uint8 {wanted}",
                "crop it with ft2.faces.align",
            )
        audio, mask = self.encode_audio(audios, whole_audio)
        with self._at_work(self.image):
            image = encode_image(self.image, reference, self.architecture.image)
        return Conditioning(
            self.image_latents(reference),
            self.encode_prompts(prompts),
            image,
            audio,
            mask,
            reference,
            self.encode_faces(reference),
            torch.tensor([motion]).repeat(len(reference), 1) if self.dit.intensity else None,
        ).to(self.device)

    def encode_faces(self, reference: Tensor) -> Tensor | None:
        """Return face embeddings [B, E] of uint8 [B, H, W, 3]; None without an identity branch."""
        if self.dit.identity is None:
            return None
        assert self.face is not None
        return self.face.embed(reference)

    def encode_condition(
        self,
        portrait: NDArray[np.uint8],
        audio: NDArray[np.float32],
        prompt: str,
        motion: tuple[float, float] = (NEUTRAL, NEUTRAL),
        whole_audio: bool = False,
    ) -> Conditioning:
        """Encode one condition: aligned portrait uint8 [H, W, 3], sound, caption, motion."""
        return self.encode_conditions(portrait[None], [audio], [prompt], whole_audio, motion)

    def image_latents(self, reference: Tensor) -> Tensor:
        """Return the mask and the image latents of the reference, [B, 4 + C, f, h, w]."""
        return self.given_latents(reference[:, None])

    def given_latents(self, given: Tensor) -> Tensor:
        """Return mask and image latents for given first frames, [B, 4 + C, f, h, w].

        Args:
            given: uint8 [B, 1 + 4k, H, W, 3]; a model that repeats the reference
                (``fill: repeat``) takes only the first.
        """
        repeat = self.architecture.latent.fill == "repeat"
        count = 1 if repeat else given.shape[1]
        frames = given[:, :1].expand(-1, self.clip.num_frames, -1, -1, -1).clone()
        if not repeat:
            frames[:, :count] = given
            frames[:, count:] = 127
        with self._at_work(self.codec):
            latents = self.codec.encode(frames).to(self.device)
        latents = (latents - self.space.image_shift) / self.space.image_scale
        if repeat:
            latents = latents[:, :, :1].expand_as(latents)
        mask = torch.zeros_like(latents[:, :4])
        mask[:, :, : (count - 1) // 4 + 1] = 1
        return torch.cat((mask, latents), 1)

    def continue_from(self, cond: Conditioning, given: Tensor) -> tuple[Conditioning, Tensor]:
        """Return conditions and carried latents of a clip that begins with given frames.

        Args:
            cond: conditions of the clip; its reference stays.
            given: the first frames, uint8 [B, 1 + 4k, H, W, 3].

        Returns:
            The conditions, and the latents x of the given frames, [B, C, 1 + k, h, w]: the codec is
            causal, so they do not depend on what follows.
        """
        rest = given[:, -1:].expand(-1, self.clip.num_frames - given.shape[1], -1, -1, -1)
        x = self.encode_video(torch.cat((given, rest), 1), cond)
        if self.architecture.latent.fill != "repeat":
            y = self.given_latents(given).to(cond.latents_mask_y)
            cond = replace(cond, latents_mask_y=y)
        return cond, x[:, :, : (given.shape[1] - 1) // 4 + 1]

    def _held(self, reference: Tensor) -> Tensor | float:
        """Return raw latents of the reference held still, or 0 if latents are absolute.

        Only frame 0 of a residual codec is absolute; what follows is motion, 0 when still.
        """
        if not self.architecture.latent.residual:
            return 0.0
        held = self.codec.encode(reference[:, None]).to(self.device)
        rest = torch.zeros_like(held).expand(-1, -1, self.clip.num_latent_frames - 1, -1, -1)
        return torch.cat((held, rest), 2)

    def encode_video(self, frames: Tensor | NDArray[np.uint8], cond: Conditioning) -> Tensor:
        """Encode clips uint8 [B, F, H, W, 3] to the transformer's latents x [B, C, f, h, w]."""
        video = torch.as_tensor(frames)
        with self._at_work(self.codec):
            raw = self.codec.encode(video, cond.reference).to(self.device)
        raw = raw - self._held(cond.reference)
        x: Tensor = (raw - self.space.shift) / self.space.scale
        return x

    def decode(self, x: Tensor, cond: Conditioning) -> Tensor:
        """Decode latents x [B, C, f, h, w] to clips uint8 [B, F, H, W, 3]."""
        raw = x.float() * self.space.scale + self.space.shift + self._held(cond.reference)
        with self._at_work(self.codec):
            return self.codec.decode(raw, cond.reference)

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        gate: Gate | None = None,
        audio_scale: Tensor | None = None,
        *,
        silent: bool = False,
        identity_scale: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity (noise - clean) at x, float32 [B, C, f, h, w].

        Args:
            x: noisy latents, [B, C, f, h, w].
            sigma: noise levels in [0, 1], [B].
            cond: conditions of the batch.
            gate: expert weights, [B, num_layers, K], or shared ones; None is the base network.
            audio_scale: strength of the audio branch, [B]; None is 1, 0 is "no audio".
            silent: do not compute the audio branch at all; equals a scale of 0.
            identity_scale: strength of the identity branch, [B]; None is the architecture's.
        """
        if identity_scale is None:
            identity_scale = torch.full((len(x),), self.architecture.identity.scale).to(x.device)
        dtype = self.dit.patch_embedding.weight.dtype
        out: Tensor = self.dit(
            torch.cat((x, cond.latents_mask_y.to(x)), 1).to(dtype),
            TIMESTEP_SCALE * sigma,
            cond.text.to(dtype),
            cond.image.to(dtype),
            None if silent else cond.audio.to(dtype),
            None if silent else cond.audio_mask,
            audio_scale,
            gate,
            cond.identity,
            identity_scale,
            cond.motion,
        ).float()
        if self.architecture.latent.gaussian_skip:
            out = out + gaussian_skip(x, sigma, self.space.variance)
        return out
