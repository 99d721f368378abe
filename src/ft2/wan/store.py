"""Encodings on disk: rows of tensors under keys, in shards, and marks of what encoded them.

Both training caches (``ft2 generator cache``, ``ft2 tlpo cache``) are such stores. A shard's index
is written after its tensors, so a kill leaves whole shards and nothing else; rows are read one by
one, so memory holds their keys alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, KeysView, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.files import open_tensors
from ft2.runs import read_json, save_tensors, write_json

_T = TypeVar("_T")


class Store:
    """A directory of shards; each row belongs to a kind (such as ``clips``) and has a key in it."""

    def __init__(self, path: Path) -> None:
        """Open a directory; a missing one is an empty store.

        Raises:
            UsageError: An index is damaged.
        """
        self.path = path
        self._places: dict[str, dict[str, tuple[str, int]]] = {}
        for index in sorted(path.glob("*-*.json")):
            shard = read_json(index)
            if not isinstance(shard, dict) or not {"kind", "file", "keys"} <= set(shard):
                raise UsageError(
                    f"'{index}' is no index of a shard", "remove it: its rows are encoded again"
                )
            places = self._places.setdefault(shard["kind"], {})
            for row, key in enumerate(shard["keys"]):
                places[key] = (shard["file"], row)

    def keys(self, kind: str) -> KeysView[str]:
        """Return the keys of a kind."""
        return self._places.get(kind, {}).keys()

    def add(self, kind: str, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Write one shard; row i of every tensor belongs to ``keys[i]``. The index comes last."""
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        file = f"{kind}-{name}.safetensors"
        save_tensors(self.path / file, tensors)
        write_json(self.path / f"{kind}-{name}.json", {"kind": kind, "file": file, "keys": keys})
        places = self._places.setdefault(kind, {})
        for row, key in enumerate(keys):
            places[key] = (file, row)

    def row(self, kind: str, key: str) -> dict[str, Tensor]:
        """Return the tensors of a row by name, each [1, ...]."""
        file, row = self._places[kind][key]
        handle = open_tensors(self.path / file)
        return {name: handle.get_slice(name)[row : row + 1] for name in handle.keys()}  # noqa: SIM118

    def rows(self, kind: str, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors of some rows by name, each [len(keys), ...]."""
        found = [self.row(kind, key) for key in keys]
        return {name: torch.cat([row[name] for row in found]) for name in found[0]}

    def row_shape(self, kind: str, key: str, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor of a row, without reading it."""
        handle = open_tensors(self.path / self._places[kind][key][0])
        return tuple(handle.get_slice(name).get_shape()[1:])


def chunks(items: Sequence[_T], size: int) -> Iterable[Sequence[_T]]:
    """Yield the items in runs of ``size``; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


def tensor_mark(name: str, value: Tensor) -> bytes:
    """Return what tells a tensor from others: its name, its shape and 128 of its values.

    The values are spread over the tensor and rounded to bfloat16, so the mark is cheap at 14B
    parameters, the same on every device and number format, and another one for other weights.
    """
    flat = value.detach().flatten()
    rows = torch.linspace(0, max(flat.numel() - 1, 0), 128).long()
    sample = flat[rows[: flat.numel()].to(flat.device)].float().bfloat16().float().tolist()
    return json.dumps([name, list(value.shape), sample]).encode()


def module_mark(module: nn.Module | None, without: tuple[str, ...] = ()) -> str | None:
    """Return a short hash of a module's tensors but those whose names begin with ``without``."""
    if module is None:
        return None
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not name.startswith(without):
            digest.update(tensor_mark(name, value))
    return digest.hexdigest()[:16]
