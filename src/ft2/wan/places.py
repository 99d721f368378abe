"""Where weights lie, and which architecture they have."""

from __future__ import annotations

from pathlib import Path

from ft2.errors import UsageError
from ft2.runs import read_json
from ft2.wan.spec import Architecture, WanSpec
from ft2.weights import nano_dir


def weights_dir(spec: WanSpec) -> Path:
    """Return the directory that ``spec.weights`` names.

    Raises:
        UsageError: if there is no such directory.
    """
    path = nano_dir() if spec.weights == "nano" else Path(spec.weights).expanduser()
    if not path.is_dir():
        raise UsageError(
            f"there are no weights at '{path}'",
            "set `weights` to `nano` or to a directory of weights",
        )
    return path


def read_architecture(spec: WanSpec) -> Architecture:
    """Return the architecture: the spec's own, else the one saved with the weights."""
    if spec.architecture is not None:
        return spec.architecture
    path = weights_dir(spec) / "architecture.json"
    if not path.is_file():
        raise UsageError(
            f"'{path.parent}' has no architecture.json",
            "give `architecture` in the config (`{}` is Wan2.1-I2V-14B)",
        )
    return Architecture.model_validate(read_json(path))
