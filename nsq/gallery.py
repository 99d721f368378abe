"""A static page of pairs: both clips side by side and in step, filtered, disagreement first."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, LABELS, STORES, ClipRecord, read_clips, read_table
from ft2.runs import atomic_dir, read_json

_COLUMNS = ["pair_id", "condition_id", "prompt", "clip_a", "clip_b", "model_a", "model_b"]
_COLUMNS += [f"label_{d}" for d in DIMENSIONS]
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


def _rows(dataset: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield what the page knows of each pair."""
    for row in read_table(dataset, "pairs", split).select(_COLUMNS).to_pylist():
        labels = {d: LABELS[row[f"label_{d}"]] for d in DIMENSIONS}
        gaps = {d: row[f"score_a_{d}"] - row[f"score_b_{d}"] for d in DIMENSIONS}
        a_wins = max((abs(gaps[d]) for d in DIMENSIONS if labels[d] == "A"), default=0.0)
        b_wins = max((abs(gaps[d]) for d in DIMENSIONS if labels[d] == "B"), default=0.0)
        yield {
            **{name: row[name] for name in _COLUMNS[:7]},
            "labels": labels,
            "scores": {s: {d: round(row[f"score_{s}_{d}"], 3) for d in DIMENSIONS} for s in "ab"},
            "stores": [store for store in STORES if row[f"in_{store}"]],
            "conflict": round(min(a_wins, b_wins), 4),
        }


def _copy(clip: ClipRecord, folder: Path) -> str:
    path = folder / f"{clip.clip_id[:32]}.mp4"
    if not path.exists():
        path.write_bytes(memoryview(clip.video))
    return f"media/{path.name}"


def _render(dataset: Path, split: str, rows: list[dict[str, Any]]) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    title = "Talking-NSQ"
    if (dataset / "stats.json").is_file():
        pairs = read_json(dataset / "stats.json")["pairs"]
        title += ", " + ", ".join(f"{name} {number}" for name, number in pairs.items())
    data = json.dumps(rows).replace("<", "\\u003c")
    return environment.get_template("gallery.html.j2").render(
        title=title, split=split, data=data, stores=STORES, dimensions=DIMENSIONS
    )
