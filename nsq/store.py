"""The score store: what a critic said about a clip, by content, so that nothing is judged twice.

One SQLite file. A row is keyed by critic, video hash and audio hash; it has three scores or the
reason why there are none. Several builds and several processes may share a store.
"""

import math
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from ft2.errors import RunError, UsageError
from ft2.pairs import DIMENSIONS, Scores

Key = tuple[str, str]
"""sha256 of the video file and of the sound that it should follow."""
Verdict = Scores | str
"""Scores, or the reason why there are none."""

_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    critic TEXT NOT NULL, video TEXT NOT NULL, audio TEXT NOT NULL,
    motion REAL, lip REAL, quality REAL, error TEXT,
    PRIMARY KEY (critic, video, audio)
) WITHOUT ROWID
"""
_GET = "SELECT motion, lip, quality, error FROM verdicts WHERE critic=? AND video=? AND audio=?"
_PUT = "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)"


class ScoreStore:
    """An open score store; close it by `with`."""

    def __init__(self, path: Path) -> None:
        """Open or make the store.

        Raises:
            UsageError: the file is not a score store, or is damaged.
            RunError: the disk is full or the file cannot be written.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._base = sqlite3.connect(path, timeout=60, isolation_level=None)
            version = self._base.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise UsageError(f"{path} is a score store of version {version}", "update ft2")
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute(_TABLE)
            self._base.execute(f"PRAGMA user_version={_VERSION}")
        except sqlite3.OperationalError as error:
            raise RunError(
                f"cannot write the score store {path}: {error}",
                "free the disk and go on with --resume: what was kept before is safe",
            ) from error
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{path} is not a score store: {error}", "name another file: store=FILE"
            ) from error

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._base.close()

    def get(self, critic: str, keys: Sequence[Key]) -> list[Verdict | None]:
        """Return what `critic` said about each clip; None where it was not asked.

        Raises:
            UsageError: a stored score is no probability (the store was changed by hand).
        """
        cursor = self._base.cursor()
        found: list[Verdict | None] = []
        for video, audio in keys:
            row = cursor.execute(_GET, (critic, video, audio)).fetchone()
            found.append(None if row is None else self._verdict(row, video))
        return found

    def put(self, critic: str, rows: Iterable[tuple[Key, Verdict]]) -> None:
        """Keep verdicts, all or none of them.

        Raises:
            RunError: the disk is full or the file cannot be written.
        """
        values = []
        for (video, audio), verdict in rows:
            scores = (None,) * 3 if isinstance(verdict, str) else verdict.values()
            error = verdict if isinstance(verdict, str) else None
            values.append((critic, video, audio, *scores, error))
        try:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany(_PUT, values)
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise RunError(
                f"cannot write scores to {self.path}: {error}",
                "free the disk and go on with --resume: what was kept before is safe",
            ) from error

    def critics(self) -> dict[str, int]:
        """Return how many clips each critic has judged."""
        return dict(
            self._base.execute("SELECT critic, COUNT(*) FROM verdicts GROUP BY critic").fetchall()
        )

    def forget_errors(self, critic: str) -> int:
        """Remove the rows with a reason instead of scores, and return how many there were."""
        query = "DELETE FROM verdicts WHERE critic=? AND error IS NOT NULL"
        return self._base.execute(query, (critic,)).rowcount

    def only_critic(self) -> str:
        """Return the one critic of this store.

        Raises:
            UsageError: the store is empty, or holds the scores of several critics.
        """
        critics = self.critics()
        if len(critics) == 1:
            return next(iter(critics))
        names = ", ".join(f"{name!r} ({count} clips)" for name, count in critics.items())
        raise UsageError(
            f"{self.path} holds the scores of {len(critics)} critics"
            + (f": {names}" if names else ""),
            "scores of different critics do not compare: name one with critic=store:NAME",
        )

    def _verdict(self, row: tuple[float | None, float | None, float | None, str | None],
                 video: str) -> Verdict:  # fmt: skip
        *scores, error = row
        if error is not None:
            return error
        values = [math.nan if value is None else value for value in scores]
        if not all(0 <= value <= 1 for value in values):
            wrong = dict(zip(DIMENSIONS, values, strict=True))
            raise UsageError(
                f"{self.path} has the scores {wrong} for the clip {video[:16]}",
                "scores are P(yes) in [0, 1]; remove the row, and the clip is judged again",
            )
        return Scores(*values)
