"""Reading foreign weight files: shapes first, then one tensor at a time.

Both kinds of file are memory-mapped, so that loading never holds more than the weights and the
file that is being read. Pickles are opened with ``weights_only=True``: code in them never runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ft2.errors import UsageError
from ft2.files import read_json
from ft2.wan.layouts import grouped

PICKLES = (".ckpt", ".pt", ".pth")
SUFFIXES = (".safetensors", *PICKLES)
Shapes = dict[str, tuple[int, ...]]


def flatten_checkpoint(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Return nested mappings of tensors (the official audio file) as one with dotted names."""
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": t for inner, t in flatten_checkpoint(value).items()}
        elif isinstance(value, Tensor):
            flat[name] = value
    return flat


def load_pickle(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a PyTorch file, memory-mapped; ``device="meta"`` gives shapes only.

    Raises:
        UsageError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        try:
            state = torch.load(path, map_location=device, weights_only=True, mmap=True)
        except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UsageError(
            f"'{path}' is not a readable checkpoint: {str(error).splitlines()[0]}",
            "only files of plain tensors are read; download it again, or convert to safetensors",
        ) from error
    if not isinstance(state, Mapping):
        raise UsageError(f"'{path}' holds a {type(state).__name__}, not named tensors")
    return flatten_checkpoint(state)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in a file, without reading their numbers.

    Raises:
        UsageError: the file is missing, damaged or of another kind.
    """
    if path.suffix in PICKLES and path.is_file():
        return {name: tuple(t.shape) for name, t in load_pickle(path, "meta").items()}
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"'{path}' is not a readable safetensors file: {error}") from error


def tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a file; each tensor may be let go before the next comes."""
    if path.suffix in PICKLES:
        yield from load_pickle(path).items()
        return
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


def check_tensors(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file that does not hold exactly the wanted tensors.

    Raises:
        UsageError: naming missing, unknown and misshapen tensors.
    """
    problems = [f"missing {name}" for name in wanted.keys() - given.keys()]
    problems += [f"unknown {name}" for name in given.keys() - wanted.keys()]
    for name in wanted.keys() & given.keys():
        if wanted[name].shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)}, want {tuple(wanted[name].shape)}"
            problems.append(f"{name} is {shapes}")
    if problems:
        listed = "; ".join(sorted(problems)[:5])
        raise UsageError(
            f"'{path}' does not fit this model: {len(problems)} tensors ({listed})",
            "use weights of the same architecture",
        )


def check_fit(
    wanted: Shapes,
    shapes: Sequence[Shapes],
    names: Sequence[Mapping[str, str]],
    what: str = "the weights hold",
) -> None:
    """Refuse files that are not exactly the wanted tensors.

    Args:
        wanted: shapes by name.
        shapes: shapes by the files' own names, file by file.
        names: the wanted name of each of them.
        what: how the message begins.

    Raises:
        UsageError: naming all tensors that are missing, unknown, twice there or misshapen.
    """
    found: Shapes = {}
    unknown, twice, misshapen = [], [], []
    for file, known in zip(shapes, names, strict=True):
        for old, shape in file.items():
            name = known[old]
            if name not in wanted:
                unknown.append(f"{old} {list(shape)}")
            elif name in found:
                twice.append(name)
            elif shape != wanted[name]:
                misshapen.append(f"{name} is {list(shape)}, not {list(wanted[name])}")
            found[name] = shape
    missing = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in found]
    problems = {
        "missing": missing,
        "unknown": unknown,
        "twice there": twice,
        "of another shape": misshapen,
    }
    texts = [f"{len(n)} {what}: {grouped(n)}" for what, n in problems.items() if n]
    if texts:
        raise UsageError(
            f"{what} {len(found)} tensors and do not fit the architecture's"
            f" {len(wanted)}: {'. '.join(texts)}",
            "check `model.architecture` with `ft2 info FILE`, or download the weights again",
        )


def sharded_files(folder: Path) -> list[Path]:
    """Return the transformer's safetensors files in a folder: those an index names, or all.

    Files ``fantasytalking*`` are the audio branch and left out.

    Raises:
        UsageError: shards that the index names are missing.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        try:
            named = set(read_json(indices[0])["weight_map"].values())
        except (KeyError, AttributeError, TypeError, json.JSONDecodeError) as error:
            raise UsageError(f"'{indices[0]}' is no index of shards") from error
        lost = sorted(name for name in named if not (folder / name).is_file())
        if lost:
            raise UsageError(
                f"'{folder}' lacks {len(lost)} of {len(named)} shards: {', '.join(lost)}",
                "download them again",
            )
        return [folder / name for name in sorted(named)]
    files = sorted(folder.glob("*.safetensors"))
    return [path for path in files if not path.name.lower().startswith("fantasytalking")]


def audio_files(directory: Path) -> list[Path]:
    """Return the files ``fantasytalking*`` of a directory."""
    found = sorted(directory.iterdir())
    return [
        path
        for path in found
        if path.name.lower().startswith("fantasytalking") and path.suffix in SUFFIXES
    ]
