"""Files that a page sends: kept for a session, under names that can do no harm."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ft2.errors import UsageError

KINDS = {"portrait": "a picture with a face", "audio": "a sound or video file"}


class Uploads:
    """A temporary folder with one folder for each upload."""

    def __init__(self) -> None:
        """Make the folder."""
        self._root = Path(tempfile.mkdtemp(prefix="ft2-")).resolve()

    def place(self, kind: str, name: str) -> Path:
        """Return a new path for an upload: its own name without folders and odd letters.

        Raises:
            UsageError: `kind` is neither a portrait nor a sound.
        """
        if kind not in KINDS:
            raise UsageError(f"'{kind}' is none of {', '.join(KINDS)}")
        clean = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name)[-80:].lstrip(".-") or kind
        return Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self._root)) / clean

    def key(self, path: Path) -> str:
        """Return what :meth:`find` finds an upload by."""
        return str(path.relative_to(self._root))

    def find(self, kind: str, key: str) -> Path:
        """Return the path of an upload.

        Raises:
            UsageError: there is none.
        """
        path = self._root / key
        if not re.fullmatch(rf"{kind}-\w+/[A-Za-z0-9._-]+", key) or not path.is_file():
            raise UsageError(f"there is no {kind}", f"choose {KINDS[kind]}")
        return path

    @contextmanager
    def named_plainly(self) -> Iterator[None]:
        """Have errors name files as the person named them."""
        try:
            yield
        except UsageError as error:
            folder = re.escape(f"{self._root}/") + r"[^/]*/"
            raise UsageError(re.sub(folder, "", error.message), error.hint) from error

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._root, ignore_errors=True)
