"""The base weights that ft2 ships, and where they lie."""

from pathlib import Path


def nano_dir() -> Path:
    """Return the directory of the packaged nano weights."""
    return Path(__file__).parent / "nano"
