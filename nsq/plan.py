"""Conditions from lists: portraits x sounds x prompts of each split, capped, fair to every face."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from pydantic import Field

from ft2.config import Config
from ft2.errors import UsageError
from ft2.files import read_lines
from ft2.nsq.splits import check_splits
from ft2.pairs import Condition


class PlanConfig(Config):
    """What `ft2 nsq plan` expands into conditions."""

    portraits: str
    """JSON lines with identity_id, portrait (relative to the file), split and perhaps source_id."""
    sounds: str
    """JSON lines with audio_id, audio (relative to the file), split and perhaps source_id."""
    prompts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Prompts of each split; a split without any has the empty prompt."""
    max_conditions: dict[str, int] = Field(default_factory=dict)
    """Most conditions of each split; a split without an entry has all combinations."""
    max_per_identity: int | None = Field(None, ge=1)
    """Most conditions of one identity."""
    seed: int = Field(0, ge=0)
    """Decides which combinations stay under the caps."""


@dataclass(frozen=True)
class Item:
    """A portrait or a sound of a list."""

    name: str
    path: Path
    split: str
    source_id: str


def expand(config: PlanConfig) -> list[Condition]:
    """Return the conditions of a plan, sorted by split and id; lists may be in any order.

    Under a cap identities take turns, each with its own seeded order of combinations, so that none
    has two conditions more than another while it still has combinations left.

    Raises:
        UsageError: a broken list, a split without sounds, or splits that share what they may not.
    """
    portraits = _read_items(Path(config.portraits), "identity_id", "portrait")
    sounds = _read_items(Path(config.sounds), "audio_id", "audio")
    splits = sorted({item.split for item in portraits})
    for name in (*config.prompts, *config.max_conditions):
        if name not in splits:
            raise UsageError(
                f"prompts or max_conditions name the split {name!r}, which no portrait is in",
                f"splits there: {', '.join(splits)}",
            )
    _check_sources(portraits, sounds)
    conditions: list[Condition] = []
    for split in splits:
        heard = [item for item in sounds if item.split == split]
        if not heard:
            raise UsageError(f"no sound is in the split {split!r}", f"add some to {config.sounds}")
        seen = [item for item in portraits if item.split == split]
        prompts = config.prompts.get(split) or ("",)
        combinations = _in_turns(seen, heard, prompts, config.seed, config.max_per_identity)
        chosen = islice(combinations, config.max_conditions.get(split))
        conditions += sorted((_condition(*c) for c in chosen), key=lambda c: c.condition_id)
    check_splits(conditions)
    return conditions


def write_conditions(conditions: Sequence[Condition], path: Path) -> None:
    """Write conditions.jsonl, with paths relative to it."""
    from ft2.runs import write_atomic

    lines = []
    for c in conditions:
        row: dict[str, Any] = {
            "condition_id": c.condition_id, "identity_id": c.identity_id, "audio_id": c.audio_id,
            "portrait": _relative(c.portrait, path.parent),
            "audio": _relative(c.audio, path.parent),
            "prompt": c.prompt, "split": c.split,
        }  # fmt: skip
        if c.source_id:
            row["source_id"] = c.source_id
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))


def summarise(conditions: Sequence[Condition]) -> dict[str, Any]:
    """Return counts of conditions by split, and the fewest and most of one identity."""
    rows = []
    for split in dict.fromkeys(c.split for c in conditions):
        own = [c for c in conditions if c.split == split]
        faces = Counter(c.identity_id for c in own)
        rows.append(
            {
                "split": split,
                "conditions": len(own),
                "identities": len(faces),
                "sounds": len({c.audio_id for c in own}),
                "prompts": len({c.prompt for c in own}),
                "per_identity": [min(faces.values()), max(faces.values())],
            }
        )
    return {"conditions": len(conditions), "splits": rows}


Combination = tuple[Item, Item, str]


def _in_turns(
    portraits: Sequence[Item],
    sounds: Sequence[Item],
    prompts: Sequence[str],
    seed: int,
    most: int | None,
) -> Iterator[Combination]:
    """Yield combinations, one of each identity a round, in an order that only the seed decides."""
    queues: dict[str, list[Combination]] = {}
    for combination in product(portraits, sounds, prompts):
        queues.setdefault(combination[0].name, []).append(combination)
    for queue in queues.values():
        queue.sort(key=lambda c: _key(seed, c))
        if most is not None:
            del queue[most:]
    rounds = max(map(len, queues.values()))
    names = sorted(queues, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    for turn in range(rounds):
        for name in names:
            if turn < len(queues[name]):
                yield queues[name][turn]


def _key(seed: int, combination: Combination) -> bytes:
    portrait, sound, prompt = combination
    text = f"{seed}\n{portrait.name}\n{portrait.path.name}\n{sound.name}\n{prompt}"
    return hashlib.sha256(text.encode()).digest()


def _condition(portrait: Item, sound: Item, prompt: str) -> Condition:
    text = f"{portrait.name}\n{portrait.path.name}\n{sound.name}\n{prompt}"
    name = f"{portrait.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Condition(
        condition_id=name, identity_id=portrait.name, audio_id=sound.name, portrait=portrait.path,
        audio=sound.path, prompt=prompt, split=portrait.split, source_id=portrait.source_id,
    )  # fmt: skip


def _read_items(path: Path, name: str, file: str) -> list[Item]:
    if not path.is_file():
        raise UsageError(f"no list {path}", f"write one object a line: {name}, {file}, split")
    items, problems = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line), path.parent, name, file))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems or not items:
        raise UsageError(
            "\n".join(problems[:20]) or f"{path} is empty", f"each line needs {name}, {file}, split"
        )
    unique = {(item.name, item.path): item for item in items}
    return [unique[key] for key in sorted(unique)]


def _item(row: object, root: Path, name: str, file: str) -> Item:
    needed = {name, file, "split"}
    if not isinstance(row, dict) or not needed <= set(row) <= needed | {"source_id"}:
        raise ValueError(f"wrong fields: {sorted(row) if isinstance(row, dict) else row!r}")
    wrong = [key for key, value in row.items() if not isinstance(value, str) or not value]
    if wrong:
        raise ValueError(f"{wrong[0]} is {row[wrong[0]]!r}, not a text")
    if not (root / row[file]).is_file():
        raise ValueError(f"no {file} file {root / row[file]}")
    return Item(row[name], root / row[file], row["split"], row.get("source_id", ""))


def _check_sources(portraits: Sequence[Item], sounds: Sequence[Item]) -> None:
    """Refuse a source clip that gives its picture to one split and its sound to another."""
    where: dict[str, set[str]] = {}
    for item in (*portraits, *sounds):
        if item.source_id:
            where.setdefault(item.source_id, set()).add(item.split)
    shared = [
        f"source_id {k!r} is in {', '.join(sorted(v))}" for k, v in where.items() if len(v) > 1
    ]
    if shared:
        raise UsageError("\n".join(shared[:20]), "give each source clip to one split")


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path.absolute(), root.absolute())).as_posix()
