"""Many videos from one list: rows of JSON, failures kept apart, work that can be taken up."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft2.config import flatten
from ft2.errors import Ft2Error, Interrupted, UsageError
from ft2.files import read_lines
from ft2.generator.best import Judge
from ft2.generator.checks import Inputs, check_inputs
from ft2.generator.record import Job, Record
from ft2.generator.run import Talker
from ft2.runs import read_json, write_json

RESULTS = "results.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FIXED = ("model", "device", "vram", "fp8")
"""Keys that rows cannot change: one model is loaded for all."""


@dataclass(frozen=True)
class Row:
    """One line of a list.

    Attributes:
        name: its ``id``, or ``row-0001`` by its place; names the files.
        portrait: picture.
        audio: sound.
        overrides: its other keys as ``KEY=VALUE``.
    """

    name: str
    portrait: Path
    audio: Path
    overrides: list[str]


def read_rows(path: Path) -> list[Row]:
    """Read a list: one JSON object a line, with ``portrait``, ``audio``, ``id`` and config keys.

    Paths are relative to the list.

    Raises:
        UsageError: with every problem found, one a line.
    """
    if not path.is_file():
        raise UsageError(f"there is no list '{path}'", "give a file with one JSON object a line")
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                rows.append(_read_row(line, number, path.parent))
            except ValueError as error:
                problems.append(f"  {path}:{number}: {error}")
    names = [row.name for row in rows]
    problems += [f"  the id '{name}' is given twice" for name in names if names.count(name) > 1]
    if problems or not rows:
        raise UsageError(
            "\n".join(["the list cannot be used:", *dict.fromkeys(problems)])
            if problems
            else f"'{path}' has no rows",
            'a row is {"portrait": "face.png", "audio": "speech.wav", "prompt": "..."}',
        )
    return rows


def _read_row(line: str, number: int, folder: Path) -> Row:
    """Return a row; every problem is a ValueError."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("a row is a JSON object")
    for key in ("portrait", "audio"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"'{key}' is missing")
    name = str(row.pop("id", f"row-{number:04}"))
    if not _NAME.fullmatch(name):
        raise ValueError(f"the id '{name}' has more than letters, digits, '.', '_' and '-'")
    portrait, audio = folder / row.pop("portrait"), folder / row.pop("audio")
    fixed = sorted({key.partition(".")[0] for key in flatten(row)} & set(_FIXED))
    if fixed:
        raise ValueError(f"a row cannot change {', '.join(fixed)}")
    overrides = [f"{key}={json.dumps(value)}" for key, value in flatten(row).items()]
    return Row(name, portrait, audio, overrides)


def check_rows(
    jobs: Sequence[tuple[Row, Job]], judge: Judge | None = None
) -> tuple[list[tuple[Row, Job, Inputs]], dict[str, str]]:
    """Check the inputs of every row; return the good ones, and the error of each other."""
    good, failed = [], {}
    for row, job in jobs:
        try:
            inputs = check_inputs(job.config, job.portrait, job.audio, job.output, judge)
            good.append((row, job, inputs))
        except Ft2Error as error:
            failed[row.name] = str(error)
    return good, failed


def generate_rows(
    jobs: Sequence[tuple[Row, Job]],
    output: Path,
    make_talker: Callable[[], Talker],
    say: Callable[[str], None],
    *,
    resume: bool = False,
    judge: Judge | None = None,
) -> Record:
    """Make every row's video under ``output`` and return the summary in ``results.json``.

    A row that fails is noted with its error and the others go on. With ``resume`` rows that are
    done are left as they are, and rows that failed are tried again.

    Args:
        jobs: rows with what they ask for; outputs lie in ``output``.
        output: directory.
        make_talker: loads model and policy; called only if a row is left to do.
        say: prints remarks.
        resume: go on in an existing directory.
        judge: scores videos; the best of each row's seeds is kept.

    Raises:
        Interrupted: on SIGINT or SIGTERM, with the summary written.
    """
    place = output / RESULTS
    rows: dict[str, Any] = read_json(place)["rows"] if resume and place.is_file() else {}
    waiting = [
        (row, job)
        for row, job in jobs
        if not (rows.get(row.name, {}).get("done") and job.output.is_file())
    ]
    good, failed = check_rows(waiting, judge)
    for name, error in failed.items():
        say(f"{name}: {error}")
        rows[name] = {"done": False, "error": error}
    _write(place, rows)
    talker = make_talker() if good else None
    for row, job, inputs in good:
        assert talker is not None
        try:
            record = talker.make(job, inputs, resume=resume, judge=judge)
            rows[row.name] = {"done": True, "video": record["video"]}
            rows[row.name] |= {k: record[k] for k in ("seconds", "candidates") if k in record}
        except Interrupted:
            raise
        except (Ft2Error, OSError, RuntimeError) as error:
            say(f"{row.name}: {error}")
            rows[row.name] = {"done": False, "error": str(error)}
        _write(place, rows)
    bad = [row.name for row, _ in jobs if not rows[row.name]["done"]]
    return {"output": str(output), "rows": len(jobs), "failed": bad}


def _write(place: Path, rows: dict[str, Any]) -> None:
    write_json(place, {"schema": 1, "rows": rows})
