"""Files that survive a kill: written under a temporary name, fsynced, renamed.

A reader sees the old content or the new one and never a part of it.
"""

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.errors import UsageError

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
"""Version of every artefact that ft2 writes; a reader refuses a newer one."""

TEMPORARY_SUFFIX = ".ft2-tmp"
"""How the names of files end that are still being written."""


def _fsync_dir(path: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}")


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file so that a reader or a kill sees all of it or what was there before.

    Text is written as UTF-8. Missing parent directories are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_dir(path.parent)


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically, indented, keys in the given order; NaN and infinities become null."""
    write_atomic(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file; a line ends with a newline and nothing else.

    `str.splitlines` also cuts at U+2028 and the like, which JSON may hold within a text.

    Raises:
        UsageError: It is not text.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return lines if lines[-1] else lines[:-1]
    except UnicodeDecodeError as error:
        raise UsageError(
            f"'{path}' is not a text file: byte {error.start} is not UTF-8",
            "give a file with one JSON object a line",
        ) from error


def read_json(path: str | Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        UsageError: The file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"'{path}' is not valid JSON: {error}") from error


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``path`` when the block ends without an error.

    An existing ``path`` is replaced as a whole. After an error nothing of the block remains.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    publish_dir(temporary, path)


def publish_dir(temporary: Path, path: Path) -> None:
    """Fsync a finished temporary directory and rename it to ``path``, replacing what was there."""
    for folder, _, names in os.walk(temporary):
        for name in names:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        _fsync_dir(Path(folder))
    old = _temporary(path).with_suffix(f".old{TEMPORARY_SUFFIX}")
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    _fsync_dir(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def finite(value: object) -> object:
    """Return what JSON can hold: scalars of numpy and torch as Python's, NaN and infinities None.

    Mappings, lists and tuples are walked through; everything else stays as it is.
    """
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # type: ignore[attr-defined]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, "torch.Tensor"],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically; equal tensors and metadata give equal bytes.

    The metadata gets ``format: pt`` and ``ft2_schema``.
    """
    from safetensors.torch import save

    blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    extra = {**(metadata or {}), "format": "pt", "ft2_schema": str(SCHEMA_VERSION)}
    write_atomic(path, with_metadata(blob, extra))


def with_metadata(blob: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file that has no metadata with some, its keys sorted.

    The safetensors library writes them in a random order.
    """
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[8 + size :]


def load_tensors(path: str | Path) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
    """Return the tensors (on the CPU) and the metadata of a safetensors file.

    Raises:
        UsageError: The file is missing, damaged, or written by a newer ft2.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"the weights file '{path}' does not exist",
            "check the path; `ft2 info DIR` lists files",
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            info = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"'{path}' is not a readable safetensors file: {error}") from error
    schema = info.get("ft2_schema", "0")
    if not schema.isdigit() or int(schema) > SCHEMA_VERSION:
        raise UsageError(
            f"'{path}' has schema {schema}, this ft2 reads up to {SCHEMA_VERSION}",
            "update ft2",
        )
    return tensors, info


def open_tensors(path: str | Path) -> Any:
    """Return an open safetensors file, from which ``get_slice(name)[rows]`` reads rows alone.

    The last 64 files stay open, for as long as they are not replaced.

    Raises:
        UsageError: The file is missing or damaged.
    """
    from safetensors import SafetensorError

    try:
        return _opened(str(path), Path(path).stat().st_mtime_ns)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"'{path}' is not a readable safetensors file: {error}") from error


@lru_cache(maxsize=64)
def _opened(path: str, changed: int) -> Any:
    """Open a file; ``changed`` tells a replaced one apart."""
    del changed
    from safetensors import safe_open

    return safe_open(path, framework="pt")
