"""From training clips to what the transformer is trained on: latents, embeddings, tokens, lips."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ft2 import faces
from ft2.generator.data import Clips
from ft2.wan.condition import Conditioning
from ft2.wan.encoders import encode_image, log_mel_tokens, wav2vec2_tokens
from ft2.wan.model import TalkingModel


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


def lip_latents(packed: NDArray[np.uint8], shape: tuple[int, int, int]) -> Tensor:
    """Return stored lip masks at latent positions, [n, f, h, w] in [0, 1].

    Pixels are brought there by trilinear interpolation (FantasyTalking, section 7.2), and grown by
    one position.

    Args:
        packed: ``Clips.lips`` of some clips, uint8 [n, F, H, W / 8].
        shape: latent frames, rows, columns.
    """
    pixels = torch.from_numpy(np.unpackbits(packed, axis=-1)).float()
    cells = torch.nn.functional.interpolate(pixels[:, None], shape, mode="trilinear")[:, 0]
    return torch.nn.functional.max_pool2d(cells, 3, stride=1, padding=1)


@torch.no_grad()
def encode_rows(
    model: TalkingModel, clips: Clips, rows: list[int], landmarks: bool
) -> dict[str, Tensor]:
    """Return some clips as the transformer is trained on them, on the CPU; float16 but for lips.

    Args:
        model: encodes.
        clips: clips of the model's format.
        rows: which of them.
        landmarks: find the lips by landmarks, else take the mouth box of aligned crops.

    Returns:
        ``x``: latents, [n, C, f, h, w]; ``y``: image latents and mask, [n, 4 + C, f, h, w];
        ``image``: picture embeddings, [n, I, D]; ``tokens``: audio tokens of the whole clip,
        [n, L, D]; ``lips``: share of lips in each latent position, [n, f, h, w] in [0, 1] (f is 1
        if the given frame's lips stand for all); ``identity``: face embeddings of the given frame,
        [n, E], for a model with that branch.
    """
    pixels = clips.frames[rows]
    frames = torch.from_numpy(pixels)
    reference, shape = frames[:, 0], model.latent_shape()
    tokens = _audio_tokens(model, list(clips.sound(rows)))
    y = model.image_latents(reference)
    held = Conditioning(y, y[:, :1, 0, 0], y[:, :1, 0, 0], tokens, tokens[..., 0] > 0, reference)
    made = {
        "x": model.encode_video(frames, held),
        "y": y,
        "image": encode_image(model.image, reference, model.architecture.image),
        "tokens": tokens,
    }
    if (embedded := model.encode_faces(reference)) is not None:
        made["identity"] = embedded
    if landmarks and clips.lips is not None:
        lips = lip_latents(clips.lips[rows], shape[1:])
    else:
        lips = lip_cells(pixels[:, 0], shape[2], shape[3], landmarks)
    return {**{name: value.half().cpu() for name, value in made.items()}, "lips": lips}


def _audio_tokens(model: TalkingModel, audios: list[NDArray[np.float32]]) -> Tensor:
    spec = model.architecture.audio
    if spec.kind == "wav2vec2":
        assert model.speech is not None
        return wav2vec2_tokens(model.speech, audios)
    return log_mel_tokens(model.speech, audios, spec)  # type: ignore[arg-type]
