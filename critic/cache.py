"""Scores kept by what they depend on: the bytes of the clip and the critic that judged it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft2.runs import hash_file, write_atomic


def default_dir() -> Path:
    """Return where scores are kept: ``$XDG_CACHE_HOME/ft2/scores``."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "ft2" / "scores"


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Return a hash of everything that a critic's scores depend on besides the clip."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class ScoreCache:
    """Log-odds of clips in small files, one a clip and critic; None as directory keeps nothing."""

    def __init__(self, directory: Path | None, critic: str) -> None:
        """Keep scores of one critic (its `fingerprint`) below a directory."""
        self._folder = None if directory is None else directory / critic[:16]

    def get(self, clip_sha256: str, dimensions: tuple[str, ...]) -> list[float] | None:
        """Return the kept log-odds of a clip, or None; a damaged file counts as absent."""
        if self._folder is None:
            return None
        try:
            found = json.loads(self._path(clip_sha256).read_text(encoding="utf-8"))
            return [float(found[name]) for name in dimensions]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, clip_sha256: str, log_odds: Mapping[str, float]) -> None:
        """Keep the log-odds of a clip."""
        if self._folder is not None:
            write_atomic(self._path(clip_sha256), json.dumps(dict(log_odds)) + "\n")

    def _path(self, clip_sha256: str) -> Path:
        assert self._folder is not None
        return self._folder / clip_sha256[:2] / f"{clip_sha256}.json"


def clip_hash(path: Path) -> str:
    """Return the sha256 of a clip's file, sound included."""
    return hash_file(path)
