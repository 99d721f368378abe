"""The encoded dataset: latents, conditions and lip masks of the clips that pairs use.

A cache directory holds one folder per fingerprint (base weights, clip format, masks); in it shards
of clips and of conditions. Keys are content hashes, so a cache may serve several datasets and a
half-filled one is simply completed.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ft2 import faces
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.media import fit_audio, read_audio, read_clip, read_image
from ft2.pairs import ClipRecord, Preference
from ft2.runs import Progress, Silent
from ft2.tlpo.config import CacheConfig
from ft2.tlpo.masks import box_mask, latent_mask
from ft2.wan.branches import branch_of
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.spec import Architecture
from ft2.wan.store import Store, chunks, tensor_mark

CACHE_VERSION = 1


class Cache(Store):
    """Encoded clips and conditions on disk, read item by item.

    Attributes:
        path: The folder of this fingerprint.
        clips: Names of the encoded clips.
        conditions: Names of the encoded conditions (`condition_key`).
    """

    @property
    def clips(self) -> set[str]:
        """Clip ids in the cache."""
        return set(self.keys("clips"))

    @property
    def conditions(self) -> set[str]:
        """Condition keys in the cache."""
        return set(self.keys("conditions"))

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape [C, f, h, w] of a clip's latents without reading them."""
        return self.row_shape("clips", key, "latents")

    def latents(self, keys: Sequence[str]) -> Tensor:
        """Return latents [B, C, f, h, w] of clips."""
        return torch.cat([self.row("clips", key)["latents"] for key in keys]).float()

    def lip_masks(self, keys: Sequence[str]) -> Tensor:
        """Return undilated latent lip masks [B, f, h, w] of clips, in [0, 1]."""
        return torch.cat([self.row("clips", key)["lip_mask"] for key in keys]).float()

    def latent_std(self, keys: Sequence[str]) -> float:
        """Return the standard deviation of at most 64 clips' finite latents; about 1 is meant."""
        if not keys:
            return float("nan")
        values = self.latents(list(keys)[:64])
        return float(values[torch.isfinite(values)].std())

    def conditioning(self, keys: Sequence[str]) -> Conditioning:
        """Return the conditions of a batch."""
        return Conditioning.from_state(self.rows("conditions", keys))


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
    """Return a hash of the base: architecture and marks of every frozen tensor (`tensor_mark`)."""
    modules = (model.dit, model.codec, model.space, model.text, model.image, model.speech)
    own = [m.state_dict() for m in modules if isinstance(m, torch.nn.Module)]
    return base_hash(model.architecture, own)


def base_hash(architecture: Architecture, states: Iterable[Mapping[str, Tensor]]) -> str:
    """Return the hash of a base from the tensors of its modules, in `model_hash`'s order."""
    own = architecture.model_dump_json(exclude={"identity", "motion"})
    digest = hashlib.sha256(own.encode())
    for state in states:
        for name, value in sorted(state.items()):
            if name.rpartition(".")[2].startswith("lora_") or branch_of(name) is not None:
                continue
            digest.update(tensor_mark(name, value))
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
    total, done = len(wanted) + len(missing), 0
    for chunk in chunks(wanted, config.shard_size):
        parts = [_encode_conditions(model, [c for _, c in b], config)
                 for b in chunks(chunk, config.batch_size)]  # fmt: skip
        cache.add("conditions", [key for key, _ in chunk], Conditioning.cat(parts).state())
        done += len(chunk)
        progress.update("cache", done, total, "conditions")
    for clip_chunk in chunks(missing, config.shard_size):
        rows = [_encode_clips(model, b, cache, config)
                for b in chunks(clip_chunk, config.batch_size)]  # fmt: skip
        tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        cache.add("clips", [clip.clip_id for clip in clip_chunk], tensors)
        done += len(clip_chunk)
        progress.update("cache", done, total, "clips")
    return cache


@torch.no_grad()
def _encode_conditions(
    model: TalkingModel, clips: Sequence[ClipRecord], config: CacheConfig
) -> Conditioning:
    portraits, audios = [], []
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips:
            with _named(clip):
                _, audio, reference = clip.write_media(Path(folder))
                image = read_image(reference)
                portraits.append(fit_portrait(image, model.clip, config.portrait_margin))
                sound = read_audio(audio, model.clip.sample_rate)
            audios.append(fit_audio(sound, model.clip.num_samples))
    prompts = [clip.prompt for clip in clips]
    return model.encode_conditions(np.stack(portraits), audios, prompts).to("cpu")


@contextmanager
def _named(clip: ClipRecord) -> Iterator[None]:
    """Say whose media are refused; their own files are temporary ones."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"the dataset's clip {clip.clip_id}: {error}", error.hint) from error


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
        videos = []
        for clip in clips:
            with _named(clip):
                videos.append(read_clip(clip.write_media(Path(folder))[0], model.clip).frames)
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
