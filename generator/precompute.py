"""Encode training clips: before training by ``ft2 generator cache``, or when training starts."""

from __future__ import annotations

from pathlib import Path

from ft2.engine import local_device, rank_zero_first
from ft2.engine.base import env_int
from ft2.errors import UsageError
from ft2.generator.cache import (
    EMPTY,
    Encoded,
    complete,
    differences,
    encoded_clips,
    fingerprint,
    open_cache,
    prompt_key,
)
from ft2.generator.config import TrainConfig
from ft2.generator.data import Clips, read_clips
from ft2.generator.start import check_training, starting_spec
from ft2.runs import Progress, RunDir
from ft2.wan.face import FaceTower
from ft2.wan.memory import encoders_of
from ft2.wan.model import TalkingModel
from ft2.wan.places import read_architecture, weights_dir
from ft2.wan.spec import Architecture
from ft2.wan.store import Store
from ft2.wan.weights import load_talking_model

GIB = 2**30

ENCODED, HASHES = "encoded", "data.json"
"""The training cache in a run directory, and the list of the data's hashes in a cache."""


def check_cache(config: TrainConfig, output: Path, resume: bool) -> None:
    """Refuse what cannot be cached before training, and a directory in use; change nothing.

    Raises:
        UsageError: training starts from nothing, so that its encoders do not exist yet; or the
            output has content and ``resume`` is off, or is no cache.
    """
    if starting_spec(config).weights == "none":
        raise UsageError(
            "this stage starts from nothing: training makes its encoders first",
            "train it (it caches by itself), or name weights with model.weights=DIR",
        )
    used = output.is_dir() and any(output.iterdir())
    if used and not (output / "cache.json").is_file() and not (output / HASHES).is_file():
        raise UsageError(f"'{output}' is no training cache", "choose another --output")
    if used and not resume:
        raise UsageError(f"the cache '{output}' already exists", "complete it with --resume")


def clip_bytes(architecture: Architecture, landmarks: bool) -> int:
    """Return the size of one encoded clip without its prompt: float16, lips float32."""
    clip, latent = architecture.clip, architecture.latent
    places = clip.height // 8 * (clip.width // 8)
    frames = clip.num_latent_frames
    tokens = clip.num_samples // (320 if architecture.audio.kind == "wav2vec2" else 640)
    values = (2 * latent.channels + 4) * frames * places + tokens * architecture.audio.features
    values += architecture.image.num_tokens * architecture.image.hidden_size
    return 2 * values + 4 * places * (frames if landmarks else 1)


def plan_cache(config: TrainConfig) -> dict[str, object]:
    """Return what there is to encode and how large it gets (an estimate)."""
    architecture = read_architecture(starting_spec(config))
    clips = read_clips(config.data, hashed=False)
    size = clip_bytes(architecture, config.lip_source == "landmarks")
    text = 2 * architecture.text.max_tokens * architecture.text.d_model
    prompts = len({EMPTY, *clips.captions})
    return {
        "model": architecture.name,
        "data": config.data,
        "clips": len(clips),
        "prompts": prompts,
        "clip_mib": round(size / 2**20, 3),
        "at_most_gib": round((len(clips) * size + prompts * text) / GIB, 3),
    }


def cache_clips(config: TrainConfig, output: Path, progress: Progress) -> dict[str, object]:
    """Encode all clips of ``config.data`` into ``output``; what is there already is kept.

    Under torchrun every process encodes its share of the files; the transformer is not loaded.

    Returns:
        ``clips``, ``prompts``: how many of those that training needs are there; ``bytes`` on disk.

    Raises:
        UsageError: see :func:`check_cache`; the directory was made for something else, or the
            face encoder is one that training makes.
        Interrupted: on SIGINT or SIGTERM; what is encoded is kept.
    """
    clips = read_clips(config.data, known=output / HASHES)
    check_training(config, clips)
    spec = starting_spec(config)
    device = local_device(config.device)
    model = load_talking_model(spec, device, fresh_branches=True, transformer=False)
    if isinstance(model.face, FaceTower) and not (weights_dir(spec) / "face.safetensors").is_file():
        raise UsageError(
            f"the face encoder of '{weights_dir(spec)}' is not trained yet",
            "train: it makes the encoder and caches by itself",
        )
    landmarks = config.lip_source == "landmarks"
    store = open_cache(output, model, landmarks)
    share = env_int("RANK", 0), env_int("WORLD_SIZE", 1)
    complete(store, model, clips, config.encoding, progress, landmarks=landmarks, share=share)
    return _found(Store(output), clips)


def _found(store: Store, clips: Clips) -> dict[str, object]:
    prompts = {prompt_key(text) for text in (EMPTY, *clips.captions)}
    return {
        "clips": len(store.keys("clips") & set(clips.keys)),
        "of": len(clips),
        "prompts": len(store.keys("prompts") & prompts),
        "bytes": sum(path.stat().st_size for path in store.path.iterdir()),
    }


def hash_list(config: TrainConfig, output: Path) -> Path | None:
    """Return where the hashes of the data's files are remembered, if that directory exists."""
    place = config.cache or output / ENCODED
    return place / HASHES if place.is_dir() else None


def training_data(
    config: TrainConfig, model: TalkingModel, clips: Clips, run: RunDir, progress: Progress
) -> Encoded:
    """Return the encoded clips, from a cache that is completed; encoders then leave the device.

    Raises:
        UsageError: the cache of ``config.cache`` belongs to other encoders or settings.
    """
    landmarks = config.lip_source == "landmarks"
    place = config.cache or run.path / ENCODED
    if config.cache is None and config.start and not run.path.joinpath(ENCODED).is_dir():
        earlier = Path(config.start) / ENCODED
        if has_all(earlier, model, clips, landmarks):
            place = earlier
    with rank_zero_first(config.engine):
        store = open_cache(place, model, landmarks)
        complete(store, model, clips, config.encoding, progress, landmarks=landmarks)
    for part in encoders_of(model):
        part.to("cpu")
    return encoded_clips(store, model, clips)


def has_all(path: Path, model: TalkingModel, clips: Clips, landmarks: bool) -> bool:
    """Say whether a directory is a cache of these encoders that has all these clips."""
    if not path.is_dir() or differences(path, fingerprint(model, landmarks)):
        return False
    return set(clips.keys) <= Store(path).keys("clips")
