"""The training cache: encoded clips in shards, for one set of encoders, completed as needed.

A directory holds ``cache.json`` (what the encodings depend on beside the clips), ``data.json``
(hashes of the data's files), and a store (``ft2.wan.store``) of clips and prompts. Clips go by the
hash of their file, prompts by their text, so a cache serves data that grow, and other data.
"""

from __future__ import annotations

import hashlib
from collections.abc import KeysView, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ft2.config import flatten
from ft2.errors import UsageError
from ft2.generator.config import EncodingConfig
from ft2.generator.data import Clips
from ft2.generator.encode import encode_rows
from ft2.runs import Interrupts, Progress, hash_file, read_json, write_json
from ft2.wan.audio import heard_audio
from ft2.wan.condition import Conditioning
from ft2.wan.face import ArcFace, FaceTower, arcface_path
from ft2.wan.model import TalkingModel
from ft2.wan.spec import Architecture
from ft2.wan.store import Store, chunks, module_mark

ENCODING = 3
"""Version of what is stored."""

DECODER_PARTS = ("residual_ridge", "residual_basis", "image_decode")
"""Tensors of the codec that encoding does not use."""

HINT = "what is encoded is kept: go on with the same command and --resume"

EMPTY = ""
"""The prompt that a dropped one becomes."""


def prompt_key(prompt: str) -> str:
    """Return the name of a prompt's embedding."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:20]


class Encoded:
    """The encoded clips of some data, read row by row.

    Attributes:
        motion: omega of face and body, [N, 2], for a model with the branch ``motion``.
    """

    def __init__(
        self, store: Store, clips: Clips, max_tokens: int, motion: Tensor | None = None
    ) -> None:
        """Find the clips in a store that has them all; prompts have ``max_tokens`` tokens."""
        self._store, self._keys, self._captions = store, clips.keys, clips.captions
        self._max_tokens, self.motion = max_tokens, motion

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._keys)

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """Return the encodings of the clips at ``index`` [B] (``encode_rows``), in float32."""
        found = self._store.rows("clips", [self._keys[i] for i in index.tolist()])
        return {name: value.float() for name, value in found.items()}

    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return prompt embeddings [B, T, D] in float32, zero beyond each prompt's end."""
        return torch.cat([self._prompt(prompt) for prompt in prompts]).float()

    def _prompt(self, prompt: str) -> Tensor:
        text = self._store.row("prompts", prompt_key(prompt))["text"]
        return F.pad(text, (0, 0, 0, self._max_tokens - text.shape[1]))

    def conditioning(
        self, rows: dict[str, Tensor], index: Tensor, architecture: Architecture, whole_audio: bool
    ) -> Conditioning:
        """Return the conditions of the clips at ``index`` [B] in float32, for training.

        Args:
            rows: their encodings, from `rows`.
            index: which clips.
            architecture: of the model.
            whole_audio: every token hears the whole clip.
        """
        audio, mask = heard_audio(
            rows["tokens"],
            architecture.clip.num_frames,
            whole=whole_audio,
            place=architecture.audio.place,
        )
        return Conditioning(
            rows["y"],
            self.prompts([self._captions[i] for i in index.tolist()]),
            rows["image"],
            audio,
            mask,
            torch.zeros(len(index), 1, 1, 3, dtype=torch.uint8),
            rows.get("identity"),
            None if self.motion is None else self.motion[index],
        )


def fingerprint(model: TalkingModel, landmarks: bool) -> dict[str, object]:
    """Return what the encodings depend on beside the clips: sizes, encoders, source of the lips."""
    face = module_mark(model.face if isinstance(model.face, FaceTower) else None)
    if isinstance(model.face, ArcFace):
        face = hash_file(arcface_path(model.spec.face_weights))[:16]
    codec: Any = getattr(model.codec, "vae", model.codec)
    sizes = model.architecture.model_dump(
        mode="json", exclude={"name", "dit", "motion"} | ({"identity"} if face is None else set())
    )
    return {
        "version": ENCODING,
        **sizes,
        "precision": model.spec.precision,
        "codec_weights": module_mark(codec, DECODER_PARTS),
        "space_weights": module_mark(model.space),
        "text_weights": module_mark(model.text),
        "image_weights": module_mark(model.image),
        "audio_weights": module_mark(model.speech),
        "face_weights": face,
        "lip_source": "landmarks" if landmarks else "box",
    }


def differences(path: Path, wanted: dict[str, object]) -> list[str]:
    """Return what a cache was made for and what is wanted, a line for each difference."""
    place = path / "cache.json"
    old, new = flatten(read_json(place)) if place.is_file() else {}, flatten(wanted)
    if not old:
        return []
    keys = [*new, *(key for key in old if key not in new)]
    return [f"  {k}: was {old.get(k)}, now {new.get(k)}" for k in keys if old.get(k) != new.get(k)]


def open_cache(path: Path, model: TalkingModel, landmarks: bool) -> Store:
    """Return the cache in a directory, which is made if it is not there.

    Raises:
        UsageError: it was made with other encoders or settings, each named.
    """
    wanted = fingerprint(model, landmarks)
    changed = differences(path, wanted)
    if changed:
        raise UsageError(
            "\n".join([f"the cache '{path}' was made for something else:", *changed]),
            "set `cache` to another directory, or delete this one",
        )
    if not (path / "cache.json").is_file():
        write_json(path / "cache.json", wanted)
    return Store(path)


def complete(
    store: Store,
    model: TalkingModel,
    clips: Clips,
    config: EncodingConfig,
    progress: Progress,
    *,
    landmarks: bool,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Encode the clips and prompts that a store lacks, shard by shard.

    Args:
        store: the cache.
        model: encodes.
        clips: clips of the model's format.
        config: clips at a time, and in a shard.
        progress: is told about every shard.
        landmarks: find the lips by landmarks, else take the mouth box of aligned crops.
        share: (k, n) encodes every n-th shard from the k-th on: one of n processes.

    Raises:
        UsageError: clips of another size or length than the model's.
        Interrupted: on SIGINT or SIGTERM; finished shards are kept.
    """
    _check_format(model, clips)
    names, texts = clips.keys, list(dict.fromkeys([EMPTY, *clips.captions]))
    prompts = _missing([prompt_key(t) for t in texts], store.keys("prompts"), config, share)
    shards = _missing(names, store.keys("clips"), config, share)
    with Interrupts() as interrupts:
        for number, shard in enumerate(prompts):
            part = [texts[row] for row in shard]
            store.add("prompts", [prompt_key(text) for text in part], _prompts(model, part))
            progress.update("encode prompts", number + 1, len(prompts), "files")
            interrupts.check(HINT)
        for number, shard in enumerate(shards):
            made = [
                encode_rows(model, clips, list(part), landmarks)
                for part in chunks(shard, config.batch_size)
            ]
            tensors = {name: torch.cat([found[name] for found in made]) for name in made[0]}
            store.add("clips", [names[row] for row in shard], tensors)
            progress.update("encode clips", number + 1, len(shards), "files")
            interrupts.check(HINT)


def _missing(
    names: Sequence[str], there: KeysView[str], config: EncodingConfig, share: tuple[int, int]
) -> list[list[int]]:
    """Return what a process has to encode: positions of missing names, file by file.

    Which names make a file, and whose file it is, depends on their positions alone, so that
    neither a kill nor what others have finished meanwhile changes it.
    """
    mine = [*chunks(range(len(names)), config.shard_size)][share[0] :: share[1]]
    files = [[row for row in part if names[row] not in there] for part in mine]
    return [rows for rows in files if rows]


def _prompts(model: TalkingModel, prompts: list[str]) -> dict[str, Tensor]:
    """Return embeddings of prompts without the zeros after the longest one."""
    text = model.encode_prompts(prompts).half().cpu()
    end = int((text != 0).any(2).any(0).nonzero().max()) + 1
    return {"text": text[:, :end]}


def _check_format(model: TalkingModel, clips: Clips) -> None:
    clip = model.clip
    found, wanted = clips.frames.shape[1:], (clip.num_frames, clip.height, clip.width, 3)
    if found != wanted:
        raise UsageError(
            f"the clips in '{clips.shards[0].path.parent}' are {found} (frames, height, width, 3),"
            f" the model takes {wanted}",
            "cut them for this model: ft2 generator prepare, with the same model.* keys",
        )


def encoded_clips(store: Store, model: TalkingModel, clips: Clips) -> Encoded:
    """Return the clips of a complete cache, with omega of the model's motion branch."""
    motion = None
    if (intensity := model.dit.intensity) is not None:
        assert clips.motion is not None
        motion = intensity.omega(clips.motion)
    return Encoded(store, clips, model.architecture.text.max_tokens, motion)
