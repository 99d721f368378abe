"""A static page of pairs: both clips side by side and in step, filtered, disagreement first."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from ft2.errors import UsageError
from ft2.nsq.stats_page import origin, read_stats
from ft2.pairs import (
    DIMENSIONS,
    LABELS,
    STORES,
    ClipRecord,
    read_clips,
    read_table,
    splits_of,
)
from ft2.runs import atomic_dir

_COLUMNS = ["pair_id", "condition_id", "prompt", "clip_a", "clip_b", "model_a", "model_b"]
_COLUMNS += [f"label_{d}" for d in DIMENSIONS]
_COLUMNS += [f"margin_{d}" for d in DIMENSIONS]
_COLUMNS += [f"score_{side}_{d}" for side in "ab" for d in DIMENSIONS]
_COLUMNS += [f"in_{store}" for store in STORES]


def write_gallery(dataset: Path, output: Path, split: str, count: int) -> dict[str, Any]:
    """Write `output`/index.html with up to `count` pairs of a split, and their clips beside it.

    Pairs whose dimensions disagree on the winner come first, the widest opposite margins before
    others; so the page holds them all when `count` is small.

    Raises:
        UsageError: no such dataset or split, or `output` is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"'{output}' already exists", "choose another --output")
    rows = sorted(_rows(dataset, split), key=lambda r: (-r["conflict"], r["pair_id"]))[:count]
    clips = read_clips(dataset, split)
    with atomic_dir(output) as folder:
        (folder / "media").mkdir()
        for row in rows:
            for side in ("a", "b"):
                row[f"video_{side}"] = _copy(clips[row[f"clip_{side}"]], folder / "media")
        page = _render(dataset, split, rows)
        (folder / "index.html").write_text(page, "utf-8")
    total = read_table(dataset, "pairs", split).num_rows
    conflicts = sum(row["conflict"] > 0 for row in rows)
    return {"page": str(output / "index.html"), "pairs": len(rows), "of": total,
            "with_conflict": conflicts}  # fmt: skip


def first_split(dataset: Path) -> str:
    """Return the first split that has pairs: train where it has any.

    Raises:
        UsageError: no such dataset, or no pairs at all.
    """
    for split in splits_of(dataset, "pairs"):
        if read_table(dataset, "pairs", split).num_rows:
            return split
    raise UsageError(f"{dataset} has no pairs", "more candidates or conditions may give some")


def _rows(dataset: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield what the page knows of each pair."""
    for row in read_table(dataset, "pairs", split).select(_COLUMNS).to_pylist():
        labels = {d: LABELS[_or(row[f"label_{d}"], LABELS.index("tie"))] for d in DIMENSIONS}
        gaps = {d: _or(row[f"margin_{d}"], 1.0) for d in DIMENSIONS}
        a_wins = max((gaps[d] for d in DIMENSIONS if labels[d] == "A"), default=0.0)
        b_wins = max((gaps[d] for d in DIMENSIONS if labels[d] == "B"), default=0.0)
        yield {
            **{name: row[name] for name in _COLUMNS[:7]},
            "labels": labels,
            "scores": {s: {d: row[f"score_{s}_{d}"] for d in DIMENSIONS} for s in "ab"},
            "stores": [store for store in STORES if row[f"in_{store}"]],
            "conflict": round(min(a_wins, b_wins), 4),
        }


def _or(value: Any, otherwise: Any) -> Any:
    """Return a value, or what stands for it where a label was imported without it."""
    return otherwise if value is None else value


def _copy(clip: ClipRecord, folder: Path) -> str:
    path = folder / f"{clip.clip_id[:32]}.mp4"
    if not path.exists():
        path.write_bytes(memoryview(clip.video))
    return f"media/{path.name}"


def _render(dataset: Path, split: str, rows: list[dict[str, Any]]) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    stats = read_stats(dataset)
    counts = ", ".join(f"{name} {number}" for name, number in stats["pairs"].items())
    data = json.dumps(rows).replace("<", "\\u003c")
    return environment.get_template("gallery.html.j2").render(
        title=f"Talking-NSQ, {counts}",
        origin=origin(stats),
        split=split,
        data=data,
        stores=STORES,
        dimensions=DIMENSIONS,
    )
