"""The command `ft2 info`: what a file or directory made by ft2 is."""

import json as json_module
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from ft2.cli.options import Json, emit
from ft2.errors import UsageError
from ft2.wan.layouts import describe_names

_PICKLES = {".ckpt", ".pt", ".pth"}
"""Endings of PyTorch's own files, as Wan's text encoder and autoencoder have them."""

_ROWS = {"ratings.jsonl": "ratings", "conditions.jsonl": "conditions"}


def info(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A file or directory.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Print what PATH is: weights, adapter, policy, run, dataset or generated video."""
    if not path.exists():
        raise UsageError(f"'{path}' does not exist", "give a file or directory that does")
    found = _directory(path) if path.is_dir() else _file(path)
    if found is None:
        raise UsageError(
            f"'{path}' is nothing that ft2 knows",
            "give weights, an adapter, a policy, a run directory, a dataset or a generated video",
        )
    emit({"path": str(path), **found}, json=json)


def _file(path: Path) -> dict[str, Any] | None:
    if path.suffix == ".safetensors":
        return {"what": "weights", **_tensors([path])}
    if path.suffix in _PICKLES:
        return {"what": "weights", **_pickle(path)}
    if path.suffix in {".mp4", ".json"} and path.with_suffix(".json").is_file():
        return _record(path.with_suffix(".json"))
    if path.suffix == ".jsonl":
        return {"what": _ROWS.get(path.name, "records"), "records": _count_lines(path)}
    return None


def _record(path: Path) -> dict[str, Any] | None:
    """Describe a video that `ft2 generate` made, by the record beside it."""
    from ft2.runs import hash_file, read_json

    record = read_json(path)
    if not isinstance(record, dict) or not {"video_sha256", "inputs", "config"} <= set(record):
        return None
    video = path.parent / str(record["video"])
    same = video.is_file() and hash_file(video) == record["video_sha256"]
    return {
        "what": "generated video",
        "video": f"{video}{'' if same else ' (not there, or changed since)'}",
        "made": record.get("made"),
        **{name: found["path"] for name, found in record["inputs"].items()},
        "policy": record["policy"] and record["policy"].get("path"),
        "seed": record["config"].get("seed"),
        "weights": record["config"]["model"].get("weights"),
        "again": f"ft2 generate --from {path} -o again.mp4",
    }


def _directory(path: Path) -> dict[str, Any] | None:
    weights = sorted(path.rglob("*.safetensors"))
    pickles = sorted(p for p in path.rglob("*") if p.suffix in _PICKLES)
    if (path / "policy.json").is_file():
        return {"what": "policy", **_read(path / "policy.json"), **_tensors(weights)}
    if (path / "adapter_config.json").is_file():
        config = _read(path / "adapter_config.json")
        keys = ("base_model_name_or_path", "r", "lora_alpha")
        return {
            "what": "adapter",
            **{key: config[key] for key in keys if key in config},
            **_tensors(weights),
        }
    if (path / "config.yaml").is_file() and (path / "command.json").is_file():
        return _run_directory(path)
    rows = [path / name for name in _ROWS if (path / name).is_file()]
    if rows:
        return {"what": "dataset", **{_ROWS[f.name]: _count_lines(f) for f in rows}}
    shards = sorted(path.rglob("*.arrow"))
    if shards:
        return {"what": "dataset", "shards": len(shards), "bytes": _bytes(shards)}
    if not weights and not pickles:
        return None
    others = [{"file": str(p.relative_to(path)), **_read_pickle(p)} for p in pickles]
    return {"what": "weights", **(_tensors(weights) if weights else {}),
            **({"torch_files": others} if others else {})}  # fmt: skip


def _run_directory(path: Path) -> dict[str, Any]:
    command = _read(path / "command.json")
    pointer = path / "checkpoints" / "latest"
    result = path / "result.json"
    found: dict[str, Any] = {
        "what": "run directory",
        "command": " ".join(str(arg) for arg in command.get("argv", [])),
        "started": command.get("time"),
        "complete": result.is_file(),
        "last_checkpoint": int(pointer.read_text()) if pointer.is_file() else None,
    }
    if result.is_file():
        found["result"] = _read(result)
    return found


def _tensors(files: list[Path]) -> dict[str, Any]:
    """Count tensors and parameters from the headers alone; no weights are read."""
    kinds: set[str] = set()
    shapes: dict[str, list[int]] = {}
    tensors = parameters = 0
    for file in files:
        for name, entry in _header(file).items():
            if name == "__metadata__":
                continue
            tensors, parameters = tensors + 1, parameters + prod(entry["shape"])
            shapes[name] = entry["shape"]
            kinds.add(entry["dtype"])
    return {
        **describe_names(shapes),
        "files": len(files),
        "tensors": tensors,
        "parameters": parameters,
        "types": sorted(kinds),
        "bytes": _bytes(files),
    }


def _pickle(path: Path) -> dict[str, Any]:
    """Describe a PyTorch file of plain tensors; its numbers are not read."""
    from ft2.wan.checkpoint import load_pickle

    tensors = load_pickle(path, "meta")
    return {
        **describe_names({name: tuple(t.shape) for name, t in tensors.items()}),
        "files": 1,
        "tensors": len(tensors),
        "parameters": sum(t.numel() for t in tensors.values()),
        "types": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "bytes": path.stat().st_size,
    }


def _read_pickle(path: Path) -> dict[str, Any]:
    """Describe one PyTorch file among others, or say why it cannot be read."""
    try:
        return _pickle(path)
    except UsageError as error:
        return {"error": error.message}


def _header(path: Path) -> dict[str, Any]:
    """Return the JSON header of a safetensors file: 8 bytes of length, then the JSON."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size - 8:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json_module.loads(file.read(size))
            return header
    except (OSError, ValueError) as error:
        raise UsageError(f"'{path}' is not a readable safetensors file: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    from ft2.runs import read_json

    value = read_json(path)
    if not isinstance(value, dict):
        raise UsageError(f"'{path}' holds no names with values", "it is not what ft2 wrote")
    return value


def _bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
