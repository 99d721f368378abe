"""The encoded dataset: latents, conditions and lip masks of the clips that pairs use.

A cache directory holds one folder per fingerprint (base weights, clip format, masks); in it shards
of clips and of conditions. Keys are content hashes, so a cache may serve several datasets and a
half-filled one is simply completed.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from ft2 import faces
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.media import fit_audio, read_audio, read_clip, read_image
from ft2.pairs import ClipRecord, Preference
from ft2.runs import Progress, Silent, read_json, save_tensors, write_json
from ft2.tlpo.config import CacheConfig
from ft2.tlpo.masks import box_mask, latent_mask
from ft2.wan.branches import branch_of
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel

CACHE_VERSION = 1

_T = TypeVar("_T")


class Cache:
    """Encoded clips and conditions on disk, read item by item.

    Attributes:
        path: The folder of this fingerprint.
        clips: Names of the encoded clips.
        conditions: Names of the encoded conditions (`condition_key`).
    """

    def __init__(self, path: Path) -> None:
        """Open a folder; a missing one is an empty cache."""
        self.path = path
        self._places: dict[str, dict[str, tuple[str, int]]] = {"clips": {}, "conditions": {}}
        self._files: dict[str, Any] = {}
        for index in sorted(path.glob("*-*.json")):
            shard = read_json(index)
            for row, key in enumerate(shard["keys"]):
                self._places[shard["kind"]][key] = (shard["file"], row)

    @property
    def clips(self) -> set[str]:
        """Clip ids in the cache."""
        return set(self._places["clips"])

    @property
    def conditions(self) -> set[str]:
        """Condition keys in the cache."""
        return set(self._places["conditions"])

    def add(self, kind: str, keys: Sequence[str], tensors: dict[str, Tensor]) -> None:
        """Write one shard; row i of every tensor belongs to ``keys[i]``. The index comes last."""
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        file = f"{kind}-{name}.safetensors"
        save_tensors(self.path / file, tensors)
        write_json(self.path / f"{kind}-{name}.json", {"kind": kind, "file": file, "keys": keys})
        for row, key in enumerate(keys):
            self._places[kind][key] = (file, row)

    def _open(self, file: str) -> Any:
        if file not in self._files:
            self._files[file] = safe_open(str(self.path / file), framework="pt")
        return self._files[file]

    def _row(self, kind: str, key: str) -> dict[str, Tensor]:
        file, row = self._places[kind][key]
        handle = self._open(file)
        return {name: handle.get_slice(name)[row : row + 1] for name in handle.keys()}  # noqa: SIM118

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape [C, f, h, w] of a clip's latents without reading them."""
        file, _ = self._places["clips"][key]
        return tuple(self._open(file).get_slice("latents").get_shape()[1:])

    def latents(self, keys: Sequence[str]) -> Tensor:
        """Return latents [B, C, f, h, w] of clips."""
        return torch.cat([self._row("clips", key)["latents"] for key in keys]).float()

    def lip_masks(self, keys: Sequence[str]) -> Tensor:
        """Return undilated latent lip masks [B, f, h, w] of clips, in [0, 1]."""
        return torch.cat([self._row("clips", key)["lip_mask"] for key in keys]).float()

    def conditioning(self, keys: Sequence[str]) -> Conditioning:
        """Return the conditions of a batch."""
        return Conditioning.cat(
            [Conditioning.from_state(self._row("conditions", key)) for key in keys]
        )


def condition_key(clip: ClipRecord) -> str:
    """Return the content hash of what a clip was generated from."""
    digest = hashlib.sha256()
    for part in (memoryview(clip.reference), memoryview(clip.audio), clip.prompt.encode()):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def fingerprint(model: TalkingModel, config: CacheConfig) -> str:
    """Return what the encodings depend on, as a short hash: weights, clip format, mask kind."""
    content = {
        "version": CACHE_VERSION,
        "model": model_hash(model),
        "clip": model.clip.model_dump(mode="json"),
        "mask": config.mask,
        "margin": config.portrait_margin,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def model_hash(model: TalkingModel) -> str:
    """Return a hash of the base: architecture and 128 values of every frozen tensor.

    The values are spread over the tensor and rounded to bfloat16, so the hash is cheap at 14B
    parameters, the same on every device and number format, and another one for other weights.
    """
    base = model.architecture.model_dump_json(exclude={"identity", "motion"})
    digest = hashlib.sha256(base.encode())
    modules = (model.dit, model.codec, model.space, model.text, model.image, model.speech)
    for module in modules:
        if not isinstance(module, torch.nn.Module):
            continue
        for name, value in sorted(module.state_dict().items()):
            if name.rpartition(".")[2].startswith("lora_") or branch_of(name) is not None:
                continue
            flat = value.detach().flatten()
            rows = torch.linspace(0, max(flat.numel() - 1, 0), 128).long()
            sample = flat[rows[: flat.numel()].to(flat.device)].float().bfloat16().float().tolist()
            digest.update(json.dumps([name, list(value.shape), sample]).encode())
    return digest.hexdigest()


def unique_clips(pairs: Iterable[Preference]) -> list[ClipRecord]:
    """Return the clips of pairs, each once, in order of first use."""
    clips = {clip.clip_id: clip for pair in pairs for clip in (pair.chosen, pair.rejected)}
    return list(clips.values())


def fill_cache(
    clips: Sequence[ClipRecord],
    cache_dir: Path,
    model: TalkingModel,
    config: CacheConfig,
    progress: Progress | None = None,
) -> Cache:
    """Encode what the cache does not hold yet and return it.

    Args:
        clips: Clips to encode, with their conditions.
        cache_dir: Root of the cache; the fingerprint's folder is made in it.
        model: Gives codec and encoders.
        config: Mask kind and batch sizes.
        progress: Where to report.

    Raises:
        UsageError: A clip has another format than the model's.
    """
    progress = progress or Silent()
    cache = Cache(cache_dir / fingerprint(model, config))
    fresh = {condition_key(clip): clip for clip in clips}
    wanted = [(key, clip) for key, clip in fresh.items() if key not in cache.conditions]
    missing = [clip for clip in clips if clip.clip_id not in cache.clips]
    total = len(wanted) + len(missing)
    done = 0
    for chunk in _chunks(wanted, config.shard_size):
        parts = [_encode_conditions(model, [c for _, c in b], config)
                 for b in _chunks(chunk, config.batch_size)]  # fmt: skip
        cache.add("conditions", [key for key, _ in chunk], Conditioning.cat(parts).state())
        done += len(chunk)
        progress.update("cache", done, total, "conditions")
    for clip_chunk in _chunks(missing, config.shard_size):
        rows = [_encode_clips(model, b, cache, config)
                for b in _chunks(clip_chunk, config.batch_size)]  # fmt: skip
        tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        cache.add("clips", [clip.clip_id for clip in clip_chunk], tensors)
        done += len(clip_chunk)
        progress.update("cache", done, total, "clips")
    return cache


def _chunks(items: Sequence[_T], size: int) -> Iterable[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@torch.no_grad()
def _encode_conditions(
    model: TalkingModel, clips: Sequence[ClipRecord], config: CacheConfig
) -> Conditioning:
    portraits, audios = [], []
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips:
            _, audio, reference = clip.write_media(Path(folder))
            portraits.append(
                fit_portrait(read_image(reference), model.clip, config.portrait_margin)
            )
            sound = read_audio(audio, model.clip.sample_rate)
            audios.append(fit_audio(sound, model.clip.num_samples))
    prompts = [clip.prompt for clip in clips]
    return model.encode_conditions(np.stack(portraits), audios, prompts).to("cpu")


def fit_portrait(image: NDArray[np.uint8], clip: ClipFormat, margin: float) -> NDArray[np.uint8]:
    """Return a portrait of the clip's size: as it is, or its aligned face crop."""
    if image.shape[:2] == (clip.height, clip.width):
        return image
    if clip.height != clip.width:
        raise UsageError(
            f"a portrait of {image.shape[1]}x{image.shape[0]} for clips of "
            f"{clip.width}x{clip.height}",
            hint="only square clips are aligned; crop the portrait to the clip's size",
        )
    return faces.align(image, clip.width, margin)


@torch.no_grad()
def _encode_clips(
    model: TalkingModel, clips: Sequence[ClipRecord], cache: Cache, config: CacheConfig
) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        videos = [read_clip(clip.write_media(Path(folder))[0], model.clip).frames for clip in clips]
    cond = cache.conditioning([condition_key(clip) for clip in clips])
    frames = np.stack(videos)
    latents = model.encode_video(frames, cond.to(model.device)).float().cpu()
    masks = torch.stack([latent_mask(_mask_or_nothing(video, config.mask), dilation=0)
                         for video in videos])  # fmt: skip
    return {"latents": latents, "lip_mask": masks}


def _mask_or_nothing(frames: NDArray[np.uint8], kind: str) -> Tensor:
    """Return a clip's lip mask; zeros, which drop its pairs, where no frame shows a face."""
    try:
        return clip_mask(frames, kind)
    except faces.NoFace:
        return torch.zeros(frames.shape[:3])


def clip_mask(frames: NDArray[np.uint8], kind: str) -> Tensor:
    """Return a clip's pixel lip mask, float32 [F, H, W] in {0, 1}.

    Args:
        frames: uint8 [F, H, W, 3].
        kind: ``box``: the mouth box of the aligned crop; ``landmarks``: the outer lips of each
            frame, a frame without a face taking those of the nearest frame that has one.

    Raises:
        NoFace: No frame shows a face.
    """
    count, height, width = frames.shape[:3]
    if kind == "box":
        return box_mask(faces.MOUTH_BOX, count, height, width)
    tracked = faces.track(frames)
    seen = np.flatnonzero(np.isfinite(tracked[:, 0, 0]))
    if not len(seen):
        raise faces.NoFace("no frame of a clip shows a face", "set encoding.mask=box")
    nearest = seen[np.abs(seen[None] - np.arange(count)[:, None]).argmin(1)]
    masks = np.stack([faces.lip_mask(tracked[i], height, width) for i in nearest])
    return torch.from_numpy(masks).float()
