"""Training clips as arrays, and the encoded form on which the transformer is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ft2 import faces
from ft2.errors import UsageError
from ft2.runs import Progress, hash_file, load_tensors, save_tensors
from ft2.wan.audio import heard_audio
from ft2.wan.condition import Conditioning
from ft2.wan.encoders import encode_image, log_mel_tokens, wav2vec2_tokens
from ft2.wan.model import TalkingModel
from ft2.wan.spec import Architecture
from ft2.wan.weights import parts

DECODER_PARTS = ("residual_ridge", "residual_basis", "image_decode")
"""Tensors of the codec that encoding does not use."""
NEEDED = ("frames", "audio")


@dataclass(frozen=True)
class Clips:
    """Clips of one data directory.

    Attributes:
        frames: uint8 [N, F, H, W, 3].
        audio: float32 [N, S] in [-1, 1).
        captions: one text a clip.
        identities: identity of each clip.
        audios: utterance of each clip.
        curves: driving curves that are on show, float32 [N, F, D]; only judges read them.
        flawless: True where no defect was put in, [N, 3]; only judges read it.
        fingerprint: hash over the files.
    """

    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    captions: list[str]
    identities: list[str]
    audios: list[str]
    curves: NDArray[np.float32] | None
    flawless: NDArray[np.bool_] | None
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.frames)


def read_clips(directory: str | Path, limit: int | None = None) -> Clips:
    """Read all shards (``*.safetensors``) of a directory in the order of their names.

    Args:
        directory: where the shards are, as ``ft2.puppet.dataset.build_arrays`` writes them.
        limit: read at most this many clips.

    Raises:
        UsageError: if there are no shards or one lacks an array.
    """
    paths = sorted(Path(directory).glob("*.safetensors"))
    if not paths:
        raise UsageError(
            f"there are no array shards (*.safetensors) in '{directory}'",
            "make them with ft2.puppet.dataset.build_arrays, or set `data`",
        )
    arrays: dict[str, list[NDArray[np.generic]]] = {}
    records: list[dict[str, object]] = []
    hashes = []
    for path in paths:
        tensors, metadata = load_tensors(path)
        missing = [name for name in NEEDED if name not in tensors]
        if missing or "clips" not in metadata:
            raise UsageError(f"'{path}' lacks {', '.join(missing) or 'its list of clips'}")
        for name, tensor in tensors.items():
            arrays.setdefault(name, []).append(tensor.numpy())
        records += json.loads(metadata["clips"])
        hashes.append(hash_file(path)[:16])
        if limit is not None and len(records) >= limit:
            break
    joined = {name: np.concatenate(found)[:limit] for name, found in arrays.items()}
    records = records[:limit]
    return Clips(
        frames=joined["frames"].astype(np.uint8, copy=False),
        audio=np.divide(joined["audio"], 32767, dtype=np.float32),
        captions=[str(record["caption"]) for record in records],
        identities=[str(record["identity_id"]) for record in records],
        audios=[str(record["audio_id"]) for record in records],
        curves=joined["shown"].astype(np.float32) if "shown" in joined else None,
        flawless=joined["labels"].astype(bool) if "labels" in joined else None,
        fingerprint="-".join(hashes),
    )


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
        lips: share of lips in each latent position, grown by one, [N, h, w] in {0, 1}.
    """

    x: Tensor
    y: Tensor
    image: Tensor
    tokens: Tensor
    texts: Tensor
    caption: Tensor
    lips: Tensor

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
        )


def _batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def lip_cells(first_frames: NDArray[np.uint8], rows: int, columns: int, landmarks: bool) -> Tensor:
    """Return latent positions that the lips of the given frame touch, [N, h, w] in {0, 1}.

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
    return cells[:, 0]


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
        made["lips"].append(lip_cells(clips.frames[part, 0], shape[2], shape[3], landmarks))
        progress.update("encode clips", part.stop, len(clips))
    joined = {name: torch.cat(tensors) for name, tensors in made.items()}
    caption = torch.tensor([place[text] for text in clips.captions])
    return Encoded(**joined, texts=model.encode_prompts(texts).half(), caption=caption)


def _audio_tokens(model: TalkingModel, audios: list[NDArray[np.float32]]) -> Tensor:
    spec = model.architecture.audio
    if spec.kind == "wav2vec2":
        assert model.speech is not None
        return wav2vec2_tokens(model.speech, audios)
    return log_mel_tokens(model.speech, audios, spec)  # type: ignore[arg-type]


def encoding_key(model: TalkingModel, clips: Clips) -> str:
    """Return a hash over the clips and everything that encodes them (not the transformer)."""
    digest = hashlib.sha256(clips.fingerprint.encode())
    for name, tensors in parts(model).items():
        for key in sorted(tensors) if name != "dit" else ():
            if not key.startswith(DECODER_PARTS):
                digest.update(key.encode() + tensors[key].float().numpy().tobytes())
    return digest.hexdigest()


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
    save_tensors(paths[0], state, {"key": key})
    return encoded
