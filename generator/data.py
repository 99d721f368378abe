"""Training clips: shards of frames, sound and what is known of them, read where they are needed."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.files import open_tensors
from ft2.runs import hash_file, read_json, write_json

NEEDED = ("frames", "audio")

WRITE_EVERY = 200
"""Files hashed between two writes of the list of hashes."""


@dataclass(frozen=True)
class Shard:
    """One file of clips: where it is, how many it has, and the beginning of its SHA-256."""

    path: Path
    count: int
    sha256: str


class Rows:
    """One array over all shards, which is read from disk where it is indexed."""

    def __init__(self, name: str, shards: Sequence[Shard]) -> None:
        """Take the array ``name`` of every shard."""
        self._name, self._shards = name, shards
        self._ends = list(itertools.accumulate(shard.count for shard in shards))

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape, clips first."""
        own = open_tensors(self._shards[0].path).get_slice(self._name).get_shape()
        return (self._ends[-1], *own[1:])

    def __len__(self) -> int:
        """Return the number of clips."""
        return self._ends[-1]

    def __getitem__(self, place: Any) -> NDArray[Any]:
        """Read clips, or one frame of each.

        Args:
            place: which clips (slice, integers or booleans), or a pair of that and one frame for
                all or a frame for each, [n].
        """
        rows, frames = place if isinstance(place, tuple) else (place, None)
        index = np.atleast_1d(np.arange(len(self))[rows])
        wanted = [frames] * len(index) if np.ndim(frames) == 0 else list(frames)
        if not len(index):
            return np.zeros((0, *self.shape[1:]))
        found = [self._one(int(i), f) for i, f in zip(index, wanted, strict=True)]
        return np.stack(found)

    def _one(self, index: int, frame: int | None) -> NDArray[Any]:
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        row = index - self._ends[number] + shard.count
        tensor = open_tensors(shard.path).get_slice(self._name)[row : row + 1][0]
        whole: NDArray[Any] = tensor.numpy()
        return whole if frame is None else whole[frame]


@dataclass(frozen=True)
class Clips:
    """Clips of one data directory; arrays stay on disk until they are indexed.

    Attributes:
        shards: the files.
        captions: one text a clip.
        identities: identity of each clip.
        audios: utterance of each clip.
        arrays: names of the arrays that every shard has.
    """

    shards: Sequence[Shard]
    captions: list[str]
    identities: list[str]
    audios: list[str]
    arrays: frozenset[str]

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.captions)

    @property
    def fingerprint(self) -> str:
        """Hash over the files."""
        return "-".join(shard.sha256 for shard in self.shards)

    @property
    def keys(self) -> list[str]:
        """Name of each clip by its content: its file's hash and its row."""
        return [f"{s.sha256}:{row}" for s in self.shards for row in range(s.count)]

    @cached_property
    def frames(self) -> Rows:
        """Pictures, uint8 [N, F, H, W, 3]."""
        return Rows("frames", self.shards)

    def sound(self, rows: Any) -> NDArray[np.float32]:
        """Return the sound of some clips, float32 [n, S] in [-1, 1)."""
        return np.divide(Rows("audio", self.shards)[rows], 32767, dtype=np.float32)

    @property
    def lips(self) -> Rows | None:
        """Pixels of the lips, bits packed along rows, uint8 [N, F, H, W / 8], or None."""
        return Rows("lips", self.shards) if "lips" in self.arrays else None

    @cached_property
    def motion(self) -> NDArray[np.float32] | None:
        """Strengths of face and body motion (``ft2.generator.strength``), float32 [N, 2].

        nan is unknown; None if they were never measured.
        """
        return self._whole("motion")

    @cached_property
    def curves(self) -> NDArray[np.float32] | None:
        """Driving curves that are on show, float32 [N, F, D]; only judges read them."""
        return self._whole("shown")

    @cached_property
    def flawless(self) -> NDArray[np.bool_] | None:
        """True where no defect was put in, [N, 3]; only judges read it."""
        found = self._whole("labels")
        return None if found is None else found.astype(bool)

    def _whole(self, name: str) -> NDArray[Any] | None:
        """Read a small array of every clip; None where a shard lacks it."""
        if name not in self.arrays:
            return None
        files = [open_tensors(shard.path).get_tensor(name).numpy() for shard in self.shards]
        return np.concatenate(files)[: len(self)].astype(np.float32, copy=False)


def read_clips(
    directory: str | Path,
    limit: int | None = None,
    known: Path | None = None,
    hashed: bool = True,
) -> Clips:
    """Find all shards (``*.safetensors``) of a directory, in the order of their names.

    Args:
        directory: where the shards are, as ``ft2.puppet.dataset.build_arrays`` writes them.
        limit: take at most this many clips.
        known: a JSON file that remembers the shards' hashes: one whose size and time of change are
            as before is not hashed again.
        hashed: hash the files; without, the clips can be counted and read but have no names.

    Raises:
        UsageError: if there are no shards or one lacks an array.
    """
    paths = sorted(Path(directory).glob("*.safetensors"))
    if not paths:
        raise UsageError(
            f"there are no array shards (*.safetensors) in '{directory}'",
            "make them with `ft2 generator prepare`, or set `data`",
        )
    hashes = _Hashes(known)
    shards: list[Shard] = []
    columns: dict[str, list[str]] = {"caption": [], "identity_id": [], "audio_id": []}
    arrays: set[str] | None = None
    for path in paths:
        handle = open_tensors(path)
        names = set(handle.keys())
        metadata = handle.metadata() or {}
        missing = [name for name in NEEDED if name not in names]
        if missing or "clips" not in metadata:
            raise UsageError(f"'{path}' lacks {', '.join(missing) or 'its list of clips'}")
        arrays = names if arrays is None else arrays & names
        records = json.loads(metadata["clips"])
        if limit is not None:
            records = records[: limit - len(columns["caption"])]
        for name, column in columns.items():
            column += [str(record[name]) for record in records]
        shards.append(Shard(path, len(records), hashes(path) if hashed else ""))
        if limit is not None and len(columns["caption"]) >= limit:
            break
    hashes.write()
    return Clips(
        shards,
        columns["caption"],
        columns["identity_id"],
        columns["audio_id"],
        frozenset(arrays or ()),
    )


class _Hashes:
    """Hashes of files, remembered in a JSON file by size and time of change."""

    def __init__(self, known: Path | None) -> None:
        self._known, self._fresh = known, 0
        self._table: dict[str, list[Any]] = {}
        if known is not None and known.is_file():
            self._table = read_json(known)

    def __call__(self, path: Path) -> str:
        now = path.stat()
        stamp, name = [now.st_size, now.st_mtime_ns], str(path.absolute())
        if name not in self._table or self._table[name][:2] != stamp:
            self._table[name] = [*stamp, hash_file(path)[:16]]
            self._fresh += 1
            if self._fresh % WRITE_EVERY == 0:
                self.write()
        return str(self._table[name][2])

    def write(self) -> None:
        if self._known is not None and self._fresh:
            write_json(self._known, self._table)
