"""One record for every answer that a person gave about a clip or a pair of clips.

People answer Yes, No or Unsure about one clip, or A, B or tie about two. An answer is stored as it
was given: merging raters, dropping contradictions and splitting come later (`ft2.critic.merge`).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final

from ft2.runs import write_atomic

CLIP_ANSWERS: Final = ("yes", "no", "unsure")
PAIR_ANSWERS: Final = ("A", "B", "tie")


@dataclass(frozen=True)
class Answer:
    """What one person said about one clip, or about two, on one dimension."""

    clip: str
    """Path or name of the clip; of a pair, of side A."""
    dimension: str
    """What was asked: ``motion``, ``lip``, ``quality``, or any other name such as ``overall``."""
    answer: str
    """``yes``, ``no`` or ``unsure`` about a clip; ``A``, ``B`` or ``tie`` about a pair."""
    other: str | None = None
    """Side B of a pair."""
    rater: str = ""
    """Who answered; empty when the source does not say."""
    time: str | None = None
    """When, ISO 8601."""
    source: str = "human"
    """Which collection the answer is from."""
    given: str = ""
    """The answer in the source's own words."""
    share: float | None = None
    """Share of several raters who preferred A (or said Yes), in [0, 1]."""
    margin: float | None = None
    """Mean opinion score of A less that of B."""
    prompt: str = ""
    """What was to be generated."""
    model: str = ""
    """Generator of the clip (side A)."""
    other_model: str = ""
    """Generator of side B."""
    identity_id: str = ""
    """Whose face; empty when unknown."""
    audio_id: str = ""
    """Which utterance; what follows an ``@`` says which part of it; empty when unknown."""
    source_clip: str = ""
    """The recording that the clip was cut from or made after; empty when unknown."""

    def __post_init__(self) -> None:
        """Refuse a value outside the vocabulary.

        Raises:
            ValueError: What is wrong, with the value.
        """
        for name in _TEXTS:
            if not isinstance(getattr(self, name), _TEXTS[name]):
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}")
        if not self.clip or not self.dimension:
            raise ValueError("clip and dimension must not be empty")
        if self.other == "":
            raise ValueError("other must be the path of side B, got ''")
        if self.other == self.clip:
            raise ValueError(f"a clip is paired with itself: {self.clip}")
        words = CLIP_ANSWERS if self.other is None else PAIR_ANSWERS
        if self.answer not in words:
            raise ValueError(f"answer {self.answer!r} is not one of {', '.join(words)}")
        _check_number("share", self.share, 0.0, 1.0)
        _check_number("margin", self.margin)
        _check_time(self.time)

    @property
    def is_pair(self) -> bool:
        """Whether two clips were compared."""
        return self.other is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that say something, for JSON."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


_TEXTS: dict[str, Any] = {f.name: f.type for f in fields(Answer) if f.type in (str, str | None)}
FIELDS: Final = tuple(f.name for f in fields(Answer))


def _check_number(name: str, value: object, low: float = -inf, high: float = inf) -> None:
    if value is None:
        return
    where = "" if high == inf else f" in [{low:g}, {high:g}]"
    if isinstance(value, str):
        raise ValueError(f"{name} must be a number{where}, got the text {value!r}: no quotes")
    good = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not good or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number{where}, got {value!r}")


def _check_time(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise ValueError(f"time must be an ISO 8601 text, got {value!r}")
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"time {value!r} is not ISO 8601") from error


@dataclass(frozen=True)
class Reject:
    """A row, or one answer of it, that was not taken."""

    row: int
    """Row of the file, from 1 (lines of JSONL; the header of a CSV is not counted)."""
    reason: str
    """What is wrong, with the value."""


@dataclass(frozen=True)
class Imported:
    """What came out of a file: answers, and the rows that were refused."""

    path: Path
    num_rows: int
    answers: list[Answer] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """Row of each answer, from 1."""
    rejects: list[Reject] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """Return how many answers of each kind there are, and how many were refused."""
        words: dict[str, Counter[str]] = {}
        for answer in self.answers:
            words.setdefault(answer.dimension, Counter())[answer.given or answer.answer] += 1
        raters = {a.rater for a in self.answers if a.rater}
        return {
            "file": str(self.path),
            "rows": self.num_rows,
            "answers": len(self.answers),
            "clips": len({c for a in self.answers for c in (a.clip, a.other) if c}),
            "raters": len(raters) if raters else "not given",
            "counts": {name: dict(found.most_common()) for name, found in words.items()},
            "rejected": len(self.rejects),
        }

    def lines(self, most: int = 20) -> list[str]:
        """Return one line for each refused row, at most `most`, with file and row."""
        shown = [f"{self.path}: row {r.row}: {r.reason}" for r in self.rejects[:most]]
        more = len(self.rejects) - len(shown)
        return [*shown, f"... and {more} more"] if more else shown


def parse_answer(row: Mapping[str, Any]) -> Answer:
    """Return the answer that a row of ft2's own format holds.

    Raises:
        ValueError: Unknown or missing keys, or a value outside the vocabulary.
    """
    unknown = sorted(set(row) - set(FIELDS))
    missing = [name for name in ("clip", "dimension", "answer") if row.get(name) is None]
    if {"video", "video_a"} & set(unknown):
        raise ValueError(
            "this is a rated clip, merged and split already: ft2 critic train takes it"
        )
    problems = [f"missing keys: {', '.join(missing)}"] if missing else []
    problems += [f"unknown keys: {', '.join(unknown)}"] if unknown else []
    if problems:
        raise ValueError("; ".join(problems))
    given = {key: value for key, value in row.items() if value is not None}
    return Answer(**given)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as JSONL, or as Parquet where the name ends so; complete or not at all."""
    rows = [answer.to_dict() for answer in answers]
    if path.suffix == ".parquet":
        write_atomic(path, _parquet(rows))
    else:
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"share": pa.float64(), "margin": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in FIELDS])
    table = pa.Table.from_pylist([dict.fromkeys(FIELDS) | dict(row) for row in rows], schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())
