"""Answers of raters in SQLite, kept as they come: who rates what, undo, gold clips, agreement."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ft2.critic.answers import CLIP_ANSWERS, PAIR_ANSWERS, Answer
from ft2.errors import UsageError

TABLES = """
create table if not exists items (
    id integer primary key, clip text not null, other text, gold text not null, facts text not null,
    unique (clip, other));
create table if not exists assignments (
    item integer references items(id), rater text not null, time text not null,
    primary key (item, rater));
create table if not exists answers (
    number integer primary key autoincrement, item integer references items(id),
    rater text not null, dimension text not null, answer text not null, time text not null,
    unique (item, rater, dimension));
"""


@dataclass(frozen=True)
class Item:
    """What a rater is shown: one clip, or two side by side."""

    clip: str
    other: str | None = None
    gold: Mapping[str, str] = field(default_factory=dict)
    """Known answers by dimension, of side A against side B; such items go to every rater."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """``identity_id``, ``audio_id``, ``source_clip``, ``prompt`` where known."""


@dataclass(frozen=True)
class Task:
    """The item that a rater has before him."""

    item: int
    sides: tuple[str, ...]
    """One clip, or left and right; which one is left depends on rater and item."""
    answered: Mapping[str, str]
    done: int
    total: int


@dataclass(frozen=True)
class Given:
    """One answer as a rater gave it."""

    rater: str
    clip: str
    other: str | None
    dimension: str
    answer: str
    time: str
    gold: Mapping[str, str]
    facts: Mapping[str, Any]


class AnswerStore:
    """A file with items and answers; every answer is on disk before the call returns."""

    def __init__(
        self,
        path: Path,
        dimensions: Sequence[str] = (),
        raters_per_item: int = 1,
        clip_words: Sequence[str] = CLIP_ANSWERS,
        release_minutes: float = 30,
    ) -> None:
        """Open or make the file; `raters_per_item` people see each item, gold ones all people.

        Args:
            path: The file.
            dimensions: What is asked about each item.
            raters_per_item: How many people see an item.
            clip_words: Answers about one clip; about a pair they are A, B and tie.
            release_minutes: How long an item that somebody opened waits for his answers before
                it goes to others as well: it may get more raters than wanted, and never fewer
                because somebody left.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.dimensions, self.raters_per_item = tuple(dimensions), raters_per_item
        self.clip_words, self.release = tuple(clip_words), timedelta(minutes=release_minutes)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._db.executescript("pragma journal_mode=wal; pragma synchronous=full;" + TABLES)
        except sqlite3.DatabaseError as error:
            raise UsageError(f"'{path}' is no store of answers: {error}") from error

    def add(self, items: Iterable[Item]) -> None:
        """Add items that are not there yet."""
        for item in items:
            known = "select 1 from items where clip = ? and other is ?"
            if self._db.execute(known, (item.clip, item.other)).fetchone() is None:
                facts = (json.dumps(dict(item.gold)), json.dumps(dict(item.facts)))
                insert = "insert into items (clip, other, gold, facts) values (?, ?, ?, ?)"
                self._db.execute(insert, (item.clip, item.other, *facts))

    def task(self, rater: str) -> Task | None:
        """Return what the rater is to judge now: what is open, else the next item; None: all done.

        The order differs from rater to rater. An item goes to as many raters as the store wants.
        """
        with self._lock:
            number = self._open_item(rater) or self._next_item(rater)
            if number is None:
                return None
            row = "insert or ignore into assignments values (?, ?, ?)"
            self._db.execute(row, (number, rater, _now()))
            clip, other = self._sides(number, rater)
            said = "select dimension, answer from answers where item = ? and rater = ?"
            answered = dict(self._db.execute(said, (number, rater)).fetchall())
            done = len(self._finished(rater))
            sides = (clip,) if other is None else (clip, other)
            return Task(number, sides, answered, done, done + self._left(rater))

    def answer(self, rater: str, item: int, dimension: str, answer: str) -> None:
        """Keep an answer; a second one to the same question replaces the first.

        Raises:
            UsageError: The rater was not given this item, or the answer is none of its words.
        """
        with self._lock:
            given = "select 1 from assignments where item = ? and rater = ?"
            if self._db.execute(given, (item, rater)).fetchone() is None:
                raise UsageError(f"item {item} was not given to '{rater}'")
            words = self.words(pair=self._sides(item, rater)[1] is not None)
            if answer not in words or dimension not in self.dimensions:
                raise UsageError(f"'{answer}' to '{dimension}' is none of {', '.join(words)}")
            insert = (
                "insert into answers (item, rater, dimension, answer, time) values (?, ?, ?, ?, ?) "
                "on conflict do update set answer = excluded.answer, time = excluded.time"
            )
            self._db.execute(insert, (item, rater, dimension, answer, _now()))

    def words(self, pair: bool) -> tuple[str, ...]:
        """Return the answers that may be given about a pair, or about one clip."""
        return PAIR_ANSWERS if pair else self.clip_words

    def undo(self, rater: str) -> bool:
        """Take back the answers to the last item that the rater touched; False when there is none.

        That item is then open again.
        """
        with self._lock:
            last = (
                "select item from answers where rater = ? order by time desc, number desc limit 1"
            )
            row = self._db.execute(last, (rater,)).fetchone()
            if row is None:
                return False
            opened = self._open_item(rater)
            if opened is not None and opened != row[0]:
                drop = "delete from assignments where item = ? and rater = ?"
                self._db.execute(drop, (opened, rater))
            self._db.execute("delete from answers where item = ? and rater = ?", (row[0], rater))
            return True

    def answers(self) -> list[Answer]:
        """Return all answers but those to gold items, with the sides as they were shown."""
        return [answer for answer, gold in self._records() if not gold]

    def report(self) -> list[dict[str, Any]]:
        """Return per rater the number of answers, of unsure ones, and the share right on gold."""
        rows: dict[str, dict[str, Any]] = {}
        for answer, gold in self._records():
            row = rows.setdefault(
                answer.rater, {"rater": answer.rater, "answers": 0, "unsure": 0, "gold": []}
            )
            row["answers"] += 1
            row["unsure"] += answer.answer == "unsure"
            if answer.dimension in gold:
                row["gold"].append(gold[answer.dimension] == answer.answer)
        for row in rows.values():
            right = row.pop("gold")
            row["gold_answers"] = len(right)
            row["gold_right"] = sum(right) / len(right) if right else None
        return [rows[name] for name in sorted(rows)]

    def given(self) -> list[Given]:
        """Return every answer as it was given, gold items too, with the sides as shown."""
        query = (
            "select items.id, rater, dimension, answer, time, gold, facts from answers "
            "join items on items.id = answers.item order by number"
        )
        found = []
        for item, rater, dimension, answer, time, gold, facts in self._db.execute(query).fetchall():
            clip, other = self._sides(item, rater)
            known = json.loads(gold)
            if other is not None and self._swapped(item, rater):
                known = {d: {"A": "B", "B": "A"}.get(word, word) for d, word in known.items()}
            found.append(
                Given(rater, clip, other, dimension, answer, time, known, json.loads(facts))
            )
        return found

    def items(self) -> list[Item]:
        """Return all items."""
        rows = self._db.execute("select clip, other, gold, facts from items order by id")
        return [Item(c, o, json.loads(gold), json.loads(facts)) for c, o, gold, facts in rows]

    def _records(self) -> list[tuple[Answer, Mapping[str, str]]]:
        return [
            (
                Answer(
                    g.clip, g.dimension, g.answer, other=g.other, rater=g.rater, time=g.time,
                    given=g.answer, **g.facts,
                ),
                g.gold,
            )
            for g in self.given()
        ]  # fmt: skip

    def _sides(self, item: int, rater: str) -> tuple[str, str | None]:
        clip, other = self._db.execute(
            "select clip, other from items where id = ?", (item,)
        ).fetchone()
        return (other, clip) if other is not None and self._swapped(item, rater) else (clip, other)

    @staticmethod
    def _swapped(item: int, rater: str) -> bool:
        return _hash(f"side {item} {rater}") % 2 == 1

    def _finished(self, rater: str) -> list[int]:
        query = "select item from answers where rater = ? group by item having count(*) >= ?"
        return [row[0] for row in self._db.execute(query, (rater, len(self.dimensions)))]

    def _open_item(self, rater: str) -> int | None:
        query = "select item from assignments where rater = ? order by time, item"
        done = set(self._finished(rater))
        given = [row[0] for row in self._db.execute(query, (rater,))]
        return next((item for item in given if item not in done), None)

    def _candidates(self, rater: str) -> list[tuple[int, int, bool]]:
        """Return (item, raters so far, gold) of the items that the rater was not given.

        A rater counts who answered all about an item, or who has had it for a short time only.
        """
        query = (
            "select id, (select count(*) from assignments a where a.item = items.id and ("
            "  (select count(*) from answers s where s.item = a.item and s.rater = a.rater) >= ?"
            "  or max(a.time, coalesce((select max(s.time) from answers s"
            "     where s.item = a.item and s.rater = a.rater), '')) > ?)), gold from items "
            "where id not in (select item from assignments where rater = ?)"
        )
        facts = (len(self.dimensions), _text(datetime.now(UTC) - self.release), rater)
        rows = [(i, n, gold != "{}") for i, n, gold in self._db.execute(query, facts)]
        return [row for row in rows if row[2] or row[1] < self.raters_per_item]

    def _next_item(self, rater: str) -> int | None:
        rows = self._candidates(rater)
        found = sorted(rows, key=lambda row: _hash(f"{row[0]} {rater}"))
        return found[0][0] if found else None

    def _left(self, rater: str) -> int:
        return len(self._candidates(rater)) + (self._open_item(rater) is not None)


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds")
