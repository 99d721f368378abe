"""The encoded form of training clips, on which the transformer is trained, and its cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ft2 import faces
from ft2.generator.data import Clips
from ft2.runs import Progress, hash_file, load_tensors, save_tensors
from ft2.wan.audio import heard_audio
from ft2.wan.condition import Conditioning
from ft2.wan.encoders import encode_image, log_mel_tokens, wav2vec2_tokens
from ft2.wan.face import ArcFace, arcface_path
from ft2.wan.model import TalkingModel
from ft2.wan.spec import Architecture

ENCODING = 2
"""Version of what is stored."""

DECODER_PARTS = ("residual_ridge", "residual_basis", "image_decode")
"""Tensors of the codec that encoding does not use."""


@dataclass(frozen=True)
class Encoded:
    """Clips in the transformer's terms; float16 at rest.

    Attributes:
        x: latents, [N, C, f, h, w].
        y: image latents and mask, [N, 4 + C, f, h, w].
        image: picture embeddings, [N, I, D].
        tokens: audio tokens of the whole clip, [N, L, D].
        texts: embeddings of the distinct captions, [M, T, D]; 0 is the empty prompt.
        caption: which of ``texts`` a clip has, [N].
        lips: share of lips in each latent position, [N, f, h, w] in [0, 1]; f is 1 if the given
            frame's lips stand for all.
        identity: face embeddings of the given frame, [N, E], for a model with that branch.
        motion: omega of face and body, [N, 2], likewise.
    """

    x: Tensor
    y: Tensor
    image: Tensor
    tokens: Tensor
    texts: Tensor
    caption: Tensor
    lips: Tensor
    identity: Tensor | None = None
    motion: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.x)

    def conditioning(
        self, index: Tensor, architecture: Architecture, whole_audio: bool
    ) -> Conditioning:
        """Return the conditions of the clips at ``index`` [B] in float32, for training."""
        audio, mask = heard_audio(
            self.tokens[index].float(),
            architecture.clip.num_frames,
            whole=whole_audio,
            place=architecture.audio.place,
        )
        reference = torch.zeros(len(index), 1, 1, 3, dtype=torch.uint8)
        return Conditioning(
            self.y[index].float(),
            self.texts[self.caption[index]].float(),
            self.image[index].float(),
            audio,
            mask,
            reference,
            None if self.identity is None else self.identity[index].float(),
            None if self.motion is None else self.motion[index].float(),
        )


def _batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def lip_cells(first_frames: NDArray[np.uint8], rows: int, columns: int, landmarks: bool) -> Tensor:
    """Return latent positions that the lips of the given frame touch, [N, 1, h, w] in {0, 1}.

    Positions of landmarks are grown by one, since lips move. Without ``landmarks``, and where no
    face is found, it is the mouth box of an aligned crop.
    """
    height, width = first_frames.shape[1:3]
    fallback = np.zeros((height, width), bool)
    fallback[faces.mouth_slice(height)] = True
    known: dict[bytes, NDArray[np.bool_]] = {}
    for frame in first_frames:
        if (key := frame.tobytes()) not in known:
            points = faces.track(frame[None])[0] if landmarks else np.full((1, 3), np.nan)
            lost = bool(np.isnan(points).any())
            known[key] = fallback if lost else faces.lip_mask(points, height, width)
    masks = np.stack([known[frame.tobytes()] for frame in first_frames])
    pixels = torch.from_numpy(masks).float()[:, None]
    cells = torch.nn.functional.adaptive_max_pool2d(pixels, (rows, columns))
    if landmarks:
        cells = torch.nn.functional.max_pool2d(cells, 3, stride=1, padding=1)
    return cells


def lip_latents(clips: Clips, part: slice, shape: tuple[int, int, int]) -> Tensor:
    """Return stored lip masks at latent positions, [n, f, h, w] in [0, 1].

    Pixels are brought there by trilinear interpolation (FantasyTalking, section 7.2), and grown by
    one position.

    Args:
        clips: with ``lips``.
        part: which clips.
        shape: latent frames, rows, columns.
    """
    assert clips.lips is not None
    pixels = torch.from_numpy(np.unpackbits(clips.lips[part], axis=-1)).float()
    cells = torch.nn.functional.interpolate(pixels[:, None], shape, mode="trilinear")[:, 0]
    return torch.nn.functional.max_pool2d(cells, 3, stride=1, padding=1)


def encode_clips(
    model: TalkingModel, clips: Clips, landmarks: bool, progress: Progress, size: int = 64
) -> Encoded:
    """Encode all clips: latents, image latents, embeddings, audio tokens, lip positions.

    Args:
        model: encodes.
        clips: clips of the model's format.
        landmarks: find the lips by landmarks, else take the mouth box of aligned crops.
        progress: is told about every batch.
        size: clips in a batch.
    """
    texts = ["", *sorted(set(clips.captions))]
    place = {text: index for index, text in enumerate(texts)}
    made: dict[str, list[Tensor]] = {name: [] for name in ("x", "y", "image", "tokens", "lips")}
    shape = model.latent_shape()
    for part in _batches(len(clips), size):
        frames = torch.from_numpy(clips.frames[part])
        reference = frames[:, 0]
        audios = list(clips.audio[part])
        tokens = _audio_tokens(model, audios)
        y = model.image_latents(reference)
        held = Conditioning(
            y, y[:, :1, 0, 0], y[:, :1, 0, 0], tokens, tokens[..., 0] > 0, reference
        )
        made["x"].append(model.encode_video(frames, held).half())
        made["y"].append(y.half())
        made["image"].append(encode_image(model.image, reference, model.architecture.image).half())
        made["tokens"].append(tokens.half())
        made["lips"].append(
            lip_latents(clips, part, shape[1:])
            if landmarks and clips.lips is not None
            else lip_cells(clips.frames[part, 0], shape[2], shape[3], landmarks)
        )
        if (embedded := model.encode_faces(reference)) is not None:
            made.setdefault("identity", []).append(embedded.half())
        progress.update("encode clips", part.stop, len(clips))
    joined = {name: torch.cat(tensors) for name, tensors in made.items()}
    caption = torch.tensor([place[text] for text in clips.captions])
    if (intensity := model.dit.intensity) is not None:
        assert clips.motion is not None
        joined["motion"] = intensity.omega(clips.motion)
    return Encoded(**joined, texts=model.encode_prompts(texts).half(), caption=caption)


def _audio_tokens(model: TalkingModel, audios: list[NDArray[np.float32]]) -> Tensor:
    spec = model.architecture.audio
    if spec.kind == "wav2vec2":
        assert model.speech is not None
        return wav2vec2_tokens(model.speech, audios)
    return log_mel_tokens(model.speech, audios, spec)  # type: ignore[arg-type]


def encoding_key(model: TalkingModel, clips: Clips) -> str:
    """Return a hash over the clips and everything that encodes them (not the transformer)."""
    digest = hashlib.sha256(f"{ENCODING} {clips.fingerprint} {model.branches}".encode())
    modules = (model.codec, model.space, model.text, model.image, model.speech, model.face)
    for part in modules:
        module = getattr(part, "vae", part)
        for key, value in _sorted_state(module):
            if not key.startswith(DECODER_PARTS):
                digest.update(key.encode() + value.cpu().float().numpy().tobytes())
    if isinstance(model.face, ArcFace):
        digest.update(hash_file(arcface_path(model.spec.face_weights)).encode())
    return digest.hexdigest()


def _sorted_state(module: object) -> list[tuple[str, Tensor]]:
    return sorted(module.state_dict().items()) if isinstance(module, nn.Module) else []


def cached_encoding(
    model: TalkingModel,
    clips: Clips,
    paths: Sequence[Path],
    landmarks: bool,
    progress: Progress,
) -> Encoded:
    """Return the encoded clips from the first of ``paths`` that fits; else make the first."""
    key = f"{encoding_key(model, clips)}-{landmarks}"
    for path in paths:
        if path.is_file():
            tensors, metadata = load_tensors(path)
            if metadata.get("key") == key:
                return Encoded(**tensors)
    encoded = encode_clips(model, clips, landmarks, progress)
    state = {name: getattr(encoded, name) for name in Encoded.__dataclass_fields__}
    kept = {name: value for name, value in state.items() if value is not None}
    save_tensors(paths[0], kept, {"key": key})
    return encoded
