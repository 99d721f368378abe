"""Other collections' ratings as `Answer` records, each with its own strict vocabulary.

A value outside an importer's vocabulary is refused with its row, never guessed: a different case,
a stray code or a synonym silently turned into a label is how published sets lost data.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ft2.critic.answers import Answer, Imported, Reject, parse_answer
from ft2.errors import UsageError
from ft2.files import read_lines

Row = Mapping[str, Any]
Parser = Callable[[Row], Iterator[Answer | str]]
"""Yields a row's answers and, as text, why one of its labels is refused."""


def _videoalign(row: Row) -> Iterator[Answer | str]:
    """Yield the answers of a row of KwaiVGI/VideoAlign's csv (VQ, MQ, TA, Overall; our LS)."""
    names = {"VQ": "quality", "MQ": "motion", "LS": "lip"}
    names |= {"TA": "text_alignment", "Overall": "overall"}
    there = [name for name in names if name in row]
    if not there:
        raise ValueError(f"none of the columns {', '.join(names)} is there")
    sides = _text(row, "path_A"), _text(row, "path_B")
    for name in there:
        try:
            word = _word(row[name], {"A": "A", "B": "B", "same": "tie"}, name)
            yield _pair(
                *sides, names[name], word, row[name], row,
                models=("A_model", "B_model"), margin=_margin(row, name), source="videoalign",
            )  # fmt: skip
        except ValueError as error:
            yield str(error)


def _margin(row: Row, name: str) -> float | None:
    """Return MOS_A - MOS_B of a dimension where the row has them."""
    marks = [row.get(f"MOS_{side}_{name}") for side in "AB"]
    if any(mark in (None, "") for mark in marks):
        return None
    try:
        return float(str(marks[0])) - float(str(marks[1]))
    except ValueError as error:
        raise ValueError(f"MOS_A_{name}, MOS_B_{name} are no numbers: {marks}") from error


def _genai_bench(row: Row) -> Iterator[Answer]:
    """Yield the vote of a GenAI-Bench video row; both-bad counts as a tie and keeps its word."""
    words = {"leftvote": "A", "rightvote": "B", "tievote": "tie", "bothbad_vote": "tie"}
    word = _word(row.get("vote_type"), words, "vote_type")
    yield _pair(
        _text(row, "video_left"), _text(row, "video_right"), "overall", word, row["vote_type"],
        row, models=("left_model", "right_model"), source="genai-bench",
    )  # fmt: skip


def _mj_bench(row: Row) -> Iterator[Answer | str]:
    """Yield the category and overall preferences of an MJ-Bench-Video row; video 1 is side A."""
    words = {"Video 1 better": "A", "Video 2 better": "B", "Same": "tie"}
    if row.get("discard"):
        raise ValueError("the source marks this row as discarded")
    given = row.get("category_preference") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"category_preference is no object: {given!r}")
    sides = (_text(row, "video_0_path"), _text(row, "video_1_path"))
    for name, value in {**given, "overall": row.get("overall_preference")}.items():
        dimension = name.lower().replace(" & ", "_and_").replace(" ", "_")
        try:
            yield _pair(
                *sides, dimension, _word(value, words, name), value, row, source="mj-bench-video"
            )
        except ValueError as error:
            yield str(error)


def _visionreward(row: Row) -> Iterator[Answer]:
    """Yield the preference of a VisionRewardDB-Video row."""
    words = {"video1": "A", "video2": "B", "tie": "tie"}
    word = _word(row.get("standard_answer"), words, "standard_answer")
    sides = (_text(row, "video1_path"), _text(row, "video2_path"))
    yield _pair(*sides, "overall", word, row["standard_answer"], row, source="visionreward")


def _hpdv3(row: Row) -> Iterator[Answer]:
    """Yield the preference of an HPDv3-like row: path1 won; choice_dist has the raters' votes."""
    share = None
    votes = row.get("choice_dist")
    if votes is not None:
        good = isinstance(votes, list) and len(votes) == 2
        good = good and all(isinstance(v, int | float) and v >= 0 for v in votes) and sum(votes) > 0
        if not good:
            raise ValueError(f"choice_dist {votes!r} is not two counts")
        share = votes[0] / sum(votes)
        if share < 0.5:
            raise ValueError(f"choice_dist {votes!r} contradicts path1, which is the winner")
    yield _pair(
        _text(row, "path1"), _text(row, "path2"), "overall", "A", "path1", row,
        models=("model1", "model2"), share=share, source="hpdv3",
    )  # fmt: skip


def _trl(row: Row) -> Iterator[Answer]:
    """Yield the preference of a TRL row whose chosen and rejected are clips."""
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    margin = row.get("margin")
    yield _pair(chosen, rejected, "overall", "A", "chosen", row, margin=margin, source="trl")


def _own(row: Row) -> Iterator[Answer]:
    yield parse_answer(row)


FORMATS: dict[str, Parser] = {
    "ft2": _own,
    "videoalign": _videoalign,
    "genai-bench": _genai_bench,
    "mj-bench-video": _mj_bench,
    "visionreward": _visionreward,
    "hpdv3": _hpdv3,
    "trl": _trl,
}
"""Importers by the name that `ft2 critic import` takes."""


def _word(value: object, words: Mapping[str, str], name: str) -> str:
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(map(repr, words))}")
    return words[value]


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}, not the path of a clip")
    return value


def _pair(
    clip: str,
    other: str,
    dimension: str,
    answer: str,
    given: object,
    row: Row,
    *,
    source: str,
    models: tuple[str, str] = ("", ""),
    share: float | None = None,
    margin: float | None = None,
) -> Answer:
    """Return a comparison; ``./videos/x`` and ``videos/x`` are the same clip."""
    sides = [str(PurePosixPath(path)) for path in (clip, other)]
    made = [str(row.get(name) or "") for name in models]
    prompt = row.get("prompt", row.get("caption")) or ""
    return Answer(
        clip=sides[0], other=sides[1], dimension=dimension, answer=answer, given=str(given),
        source=source, model=made[0], other_model=made[1], share=share, margin=margin,
        prompt=prompt if isinstance(prompt, str) else json.dumps(prompt),
    )  # fmt: skip


def import_file(name: str, path: Path) -> Imported:
    """Return the answers of a file or HF dataset directory, and the rows that were refused.

    Args:
        name: One of `FORMATS`.
        path: CSV, JSON (a list), JSONL or Parquet file, or what `Dataset.save_to_disk` wrote.

    Raises:
        UsageError: Unknown format, no such file, not readable, or without rows.
    """
    if name not in FORMATS:
        raise UsageError(f"unknown format '{name}'", f"choose one of {', '.join(FORMATS)}")
    answers: list[Answer] = []
    rows: list[int] = []
    rejects: list[Reject] = []
    number = 0
    for number, row in read_rows(path):
        try:
            if not isinstance(row, Mapping):
                raise ValueError(f"a row is an object, got {row!r}")
            row = _cells(row) if path.suffix.lower() == ".csv" else row
            for found in list(FORMATS[name](row)):
                if isinstance(found, Answer):
                    answers.append(found)
                    rows.append(number)
                else:
                    rejects.append(Reject(number, found))
        except ValueError as error:
            rejects.append(Reject(number, str(error)))
    if not number:
        raise UsageError(f"{path} has no rows", "give a file with ratings")
    return Imported(path, number, answers, rows, rejects)


def import_answers(path: Path) -> Imported:
    """Return the answers of a file of ft2's own format with their rows.

    Raises:
        UsageError: The file is missing or empty, or a row is not what it must be; all are named.
    """
    found = import_file("ft2", path)
    if found.rejects:
        raise UsageError("\n".join(found.lines()), "correct the rows, or import the file again")
    return found


def read_answers(path: Path) -> list[Answer]:
    """Return the answers of a file of ft2's own format (JSONL, JSON, Parquet, HF dataset).

    Raises:
        UsageError: As `import_answers`.
    """
    return import_answers(path).answers


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number from 1, row) of a CSV, JSON, JSONL or Parquet file or an HF dataset.

    A line of JSONL that is no JSON is yielded as its text.

    Raises:
        UsageError: No such file, or not readable as what its name says.
    """
    if not path.exists():
        raise UsageError(f"there is no ratings file {path}", "check the path")
    try:
        yield from _rows(path)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UsageError(
            f"cannot read {path}: {error}", "give CSV, JSON, JSONL, Parquet or an HF dataset"
        ) from error


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    kind = path.suffix.lower()
    if path.is_dir():
        from datasets import DatasetDict, load_from_disk

        found = load_from_disk(str(path))
        if isinstance(found, DatasetDict):
            raise UsageError(
                f"{path} holds several splits: {', '.join(found)}",
                f"give one of them: {path / next(iter(found), 'train')}",
            )
        yield from enumerate(found, 1)
    elif kind == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from enumerate(csv.DictReader(file, strict=True), 1)
    elif kind == ".parquet":
        import pyarrow.parquet as pq

        yield from enumerate(pq.read_table(path).to_pylist(), 1)
    elif kind == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("a JSON file must hold a list of rows")
        yield from enumerate(rows, 1)
    else:
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield number, _json_or_text(line)


def _cells(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what a row of a CSV says: no empty cells, and the numbers of our own columns.

    Raises:
        ValueError: It has more or fewer cells than the header.
    """
    if None in row:
        raise ValueError(f"more cells than the header names, the first is {row[None][0]!r}")
    short = [name for name, value in row.items() if value is None]
    if short:
        raise ValueError(f"fewer cells than the header names: none for {', '.join(short)}")
    found = {name: value for name, value in row.items() if value != ""}
    return found | {name: _number(found[name]) for name in ("share", "margin") if name in found}


def _number(text: str) -> float | str:
    """Return a cell as a number; what is none stays, to be refused by its own name."""
    try:
        return float(text)
    except ValueError:
        return text


def _json_or_text(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line
