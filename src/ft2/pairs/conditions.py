"""Reading of conditions.jsonl: what clips are generated from."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

from ft2.errors import UsageError
from ft2.files import read_lines
from ft2.pairs.records import Condition

_NAMES = {f.name for f in fields(Condition)}
_REQUIRED = {f.name for f in fields(Condition) if f.default is MISSING}


def read_conditions(path: Path | str) -> list[Condition]:
    """Return the conditions of a conditions.jsonl file, in file order, with resolved paths.

    Raises:
        UsageError: no such file, a broken line (all lines are reported at once), a duplicate
            `condition_id` or a missing portrait or audio file.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"no conditions file {path}",
            hint=f"write one JSON object a line with {', '.join(sorted(_REQUIRED))}; "
            "`ft2 puppet build --conditions N` makes some",
        )
    conditions: dict[str, Condition] = {}
    problems = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            condition = _condition(json.loads(line), path.parent)
            if condition.condition_id in conditions:
                raise ValueError(f"condition_id {condition.condition_id!r} is there twice")
            conditions[condition.condition_id] = condition
        except (ValueError, TypeError) as error:
            problems.append(f"{path}:{number}: {error}")
    if problems or not conditions:
        raise UsageError(
            "\n".join(problems[:20]) or f"{path} has no conditions",
            hint=f"each line needs {', '.join(sorted(_REQUIRED))}",
        )
    return list(conditions.values())


def _condition(row: object, root: Path) -> Condition:
    if not isinstance(row, dict) or not _REQUIRED <= set(row) <= _NAMES:
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"wrong fields: {keys}")
    for name, value in row.items():
        if not isinstance(value, str) or (not value and name not in ("prompt", "source_id")):
            raise ValueError(f"{name} is {value!r}, not a text")
    files = {name: root / row[name] for name in ("portrait", "audio")}
    for name, file in files.items():
        if not file.is_file():
            raise ValueError(f"no {name} file {file}")
    return Condition(**(row | files))
