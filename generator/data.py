"""Training clips as arrays: shards of frames, sound and what is known of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.runs import hash_file, load_tensors

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
        motion: strengths of face and body motion (``ft2.generator.strength``), float32 [N, 2]; nan
            is unknown. None if they were never measured.
        lips: pixels of the lips, bits packed along rows, uint8 [N, F, H, W / 8], or None.
        fingerprint: hash over the files.
    """

    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    captions: list[str]
    identities: list[str]
    audios: list[str]
    curves: NDArray[np.float32] | None
    flawless: NDArray[np.bool_] | None
    motion: NDArray[np.float32] | None
    lips: NDArray[np.uint8] | None
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
        motion=_complete(joined, "motion", len(records)),
        lips=_complete(joined, "lips", len(records)),
        fingerprint="-".join(hashes),
    )


def _complete(joined: dict[str, NDArray[np.generic]], name: str, count: int) -> Any:
    """Return an array that every shard has, else None."""
    found = joined.get(name)
    return found if found is not None and len(found) == count else None
