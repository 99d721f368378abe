"""A dataset from pairs that others labelled: the same tables, views, manifest and card as a build.

Clips that meet in pairs are one condition. What a collection does not say is not made up: a clip
without scores has none, a label without a margin has none; a portrait or sound that is not given is
the clip's own first frame or track.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ft2.errors import UsageError
from ft2.nsq.assemble import Layout, Made, write_split
from ft2.nsq.card import render_card
from ft2.nsq.config import CardConfig
from ft2.nsq.imported_media import RATE, Clip, look, media, portrait_bytes, short_hash, sound_bytes
from ft2.nsq.labelled import LETTERS, Labelled, Refused
from ft2.nsq.manifest import ContentHash
from ft2.nsq.mining import CORE, Core, core_path
from ft2.nsq.pairing import UNLABELLED, Pairs
from ft2.nsq.scored import SCHEMA, RangeFile, write_rows
from ft2.nsq.tables import Provenance
from ft2.nsq.tally import Tally
from ft2.pairs import DIMENSIONS, SCHEMA_VERSION, STORES, Scores
from ft2.runs import Progress, atomic_dir, write_atomic, write_json

_TIE = LETTERS.index("tie")


@dataclass
class _Pair:
    """What all rows together say about two clips."""

    row: Labelled
    sides: tuple[str, str]
    letters: list[int] = field(default_factory=lambda: [UNLABELLED] * 3)
    margins: list[float] = field(default_factory=lambda: [float("nan")] * 3)

    def add(self, row: Labelled, turned: bool) -> None:
        """Take the labels of a row about the same clips, whose A may be our B.

        Raises:
            ValueError: an earlier row says otherwise; nothing is taken.
        """
        said = [
            (index, LETTERS.index(letter), row.margins.get(dimension))
            for dimension, letter in row.labels.items()
            for index, d in enumerate(DIMENSIONS)
            if dimension in (d, "fusion")
        ]
        said = [(i, 1 - c if turned and c != _TIE else c, margin) for i, c, margin in said]
        for index, code, _ in said:
            if self.letters[index] not in (UNLABELLED, code):
                d = DIMENSIONS[index]
                raise ValueError(f"an earlier row says otherwise about {d} of these clips")
        for index, code, margin in said:
            self.letters[index] = code
            self.margins[index] = self.margins[index] if margin is None else margin


def import_pairs(
    rows: Iterable[Labelled],
    output: Path,
    *,
    format_name: str,
    split: str,
    label_source: str,
    refused: Refused,
    progress: Progress,
    layout: Layout = Layout(sample_rate=RATE),
) -> dict[str, Any]:
    """Write a dataset directory from labelled pairs and return its statistics.

    Args:
        rows: What a reader of `ft2.nsq.labelled` yields.
        output: Where to; must not be there.
        format_name: For the records.
        split: The split of all rows.
        label_source: One of `ft2.pairs.LABEL_SOURCES`.
        refused: Rows that were not taken; broken clips and contradictions are added.
        progress: Told of rows and shards.
        layout: How tables are cut.

    Raises:
        UsageError: no row is left.
    """
    with atomic_dir(output) as folder:
        pairs, clips = _merge(rows, refused, progress)
        if not pairs:
            raise UsageError("no row could be imported:\n" + describe(refused), _hint(refused))
        provenance = Provenance(f"imported: {format_name}", label_source, source="imported")
        made, content = _write_tables(folder, pairs, clips, split, provenance, layout)
        taken = {
            "format": format_name, "rows": len(pairs), "refused": len(refused.reasons),
            "dimensions": [d for i, d in enumerate(DIMENSIONS)
                           if any(pair.letters[i] != UNLABELLED for pair in pairs)],
        }  # fmt: skip
        summary = _write_records(folder, made, content, label_source, taken)
        progress.update("shards", 1, 1, f"{split}: {len(pairs)} pairs")
    return summary


def _write_tables(
    folder: Path,
    pairs: Sequence[_Pair],
    clips: dict[str, Clip],
    split: str,
    provenance: Provenance,
    layout: Layout,
) -> tuple[Made, ContentHash]:
    """Write clips, pairs and views of the one split."""
    work, made, content = folder / "work", Made(), ContentHash()
    core = _scored_and_core(pairs, clips, split, work)
    counts = _write_core(core, work, split)
    with RangeFile(work / f"{split}.scored") as scored:
        tally = Tally(split, (0.5, 0.5, 0.5))
        sides = core["a"].astype(np.int64), core["b"].astype(np.int64)
        mined = Pairs(*sides, core["labels"].astype(np.int64), core["stores"])
        tally.add(scored.read(0, len(scored)), mined)
        made.stats.append(tally.to_json())
        write_split(layout, folder, split, scored, counts, media(), provenance, content, made)
    shutil.rmtree(work)
    return made, content


def _hint(refused: Refused) -> str:
    if all(reason.startswith("no such file") for _, reason in refused.reasons):
        return "paths in the rows are relative to the file: put it where they lead from"
    return "is it the right FORMAT?"


def describe(refused: Refused, count: int = 20) -> str:
    """Return the first refusals as lines, and how many more there are."""
    lines = [f"row {row}: {reason}" for row, reason in refused.reasons[:count]]
    more = len(refused.reasons) - count
    return "\n".join(lines + ([f"... and {more} more"] if more > 0 else []))


def _merge(
    rows: Iterable[Labelled], refused: Refused, progress: Progress
) -> tuple[list[_Pair], dict[str, Clip]]:
    """Return the pairs, each once, and their clips by id; what does not fit is refused."""
    found: dict[frozenset[str], _Pair] = {}
    clips: dict[str, Clip] = {}
    facts: dict[str, tuple[object, ...]] = {}
    for number, row in enumerate(rows, start=1):
        progress.update("rows", number, number + 1, f"{len(refused.reasons)} refused")
        try:
            looked = [look(path) for path in row.clips]
            a, b = (clip.clip_id for clip in looked)
            if a == b:
                raise ValueError("both clips are the same file")
            for index, clip in enumerate(looked):
                _agree(facts, clip.clip_id, row, index)
            pair = found.get(frozenset((a, b)), _Pair(row, (a, b)))
            pair.add(row, turned=pair.sides != (a, b))
            found[frozenset((a, b))] = pair
            clips |= {clip.clip_id: clip for clip in looked}
        except (UsageError, ValueError) as error:
            refused.add(row.row, error.message if isinstance(error, UsageError) else error)
    return list(found.values()), clips


def _agree(facts: dict[str, tuple[object, ...]], clip_id: str, row: Labelled, side: int) -> None:
    """Refuse a row that says something else about a clip than an earlier one."""
    said = (row.prompt, row.models[side], row.seeds[side], row.names.get("condition_id"))
    if facts.setdefault(clip_id, said) != said:
        raise ValueError(
            f"{row.clips[side].name} was there with (prompt, model, seed, condition) "
            f"{facts[clip_id]}, now with {said}"
        )


def _scored_and_core(
    pairs: Sequence[_Pair], clips: dict[str, Clip], split: str, work: Path
) -> Core:
    """Write the clips sorted by condition, and return the pairs as rows of them."""
    conditions = _components(pairs)
    first: dict[str, str] = {}
    for clip_id, condition in sorted(conditions.items()):
        first.setdefault(condition, clip_id)
    said: dict[str, tuple[_Pair, int]] = {}
    for pair in pairs:
        for side, clip_id in enumerate(pair.sides):
            said.setdefault(clip_id, (pair, side))
    order = sorted(clips, key=lambda clip_id: (conditions[clip_id], clip_id))
    rows = [_row(clips, c, *said[c], conditions[c], first[conditions[c]], split) for c in order]
    write_rows(work / f"{split}.scored", rows)
    place = {clip_id: row for row, clip_id in enumerate(order)}
    core = np.zeros(len(pairs), CORE)
    for index, pair in enumerate(sorted(pairs, key=lambda p: conditions[p.sides[0]])):
        decided = np.isin(pair.letters, (0, 1))
        core[index]["a"], core[index]["b"] = (place[side] for side in pair.sides)
        core[index]["labels"], core[index]["given"] = pair.letters, pair.margins
        core[index]["stores"] = [*decided, decided.all() and len(set(pair.letters)) == 1]
    return core


def _components(pairs: Sequence[_Pair]) -> dict[str, str]:
    """Return the condition of each clip: the given name, or one for all clips that meet."""
    parent: dict[str, str] = {}

    def root(clip: str) -> str:
        while parent.setdefault(clip, clip) != clip:
            parent[clip] = clip = parent[parent[clip]]
        return clip

    for pair in pairs:
        low, high = sorted(root(side) for side in pair.sides)
        parent[high] = low
    given = {s: pair.row.names.get("condition_id") for pair in pairs for s in pair.sides}
    return {clip: given[clip] or f"imported-{root(clip)[:16]}" for clip in parent}


def _row(
    clips: dict[str, Clip],
    clip_id: str,
    pair: _Pair,
    side: int,
    condition: str,
    first: str,
    split: str,
) -> dict[str, Any]:
    """Return a row of `scored.SCHEMA`; `first` is the clip whose face and sound a condition has."""
    row, clip = pair.row, clips[clip_id]
    sound, portrait = row.sound or clips[first].path, row.portrait or clips[first].path
    scores = row.scores[side]
    known: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    known |= {
        "clip_id": clip_id, "condition_id": condition, "prompt": row.prompt, "split": split,
        "identity_id": row.names.get("identity_id", ""), "source_id": "",
        "audio_id": row.names.get("audio_id") or short_hash(sound_bytes(str(sound))),
        "reference_id": row.names.get("reference_id") or short_hash(portrait_bytes(str(portrait))),
        "model": row.models[side], "seed": row.seeds[side], "video": str(clip.path),
        "audio": str(sound), "portrait": str(portrait), "fps": clip.fps,
        "num_frames": clip.shape[0], "height": clip.shape[1], "width": clip.shape[2],
        "media_bytes": clip.num_bytes
        + len(sound_bytes(str(sound))) + len(portrait_bytes(str(portrait))),
    }  # fmt: skip
    if isinstance(scores, Scores):
        known |= {f"score_{d}": scores.get(d) for d in DIMENSIONS}
    return known


def _write_core(core: Core, work: Path, split: str) -> dict[str, int]:
    counts = {}
    for index, name in enumerate(("pairs", *STORES)):
        part = core if name == "pairs" else core[core["stores"][:, index - 1]]
        part.tofile(core_path(work, split, name))
        counts[name] = len(part)
    return counts


def _write_records(
    folder: Path, made: Made, content: ContentHash, label_source: str, taken: dict[str, Any]
) -> dict[str, Any]:
    """Write statistics, card and manifest."""
    clips = sum(split["clips"] for split in made.stats)
    summary: dict[str, Any] = {
        "label_source": label_source, "num_candidates": clips, "num_clips": clips,
        "num_dropped": 0, "num_failed": 0, "dropped": [],
        "pairs": {store: sum(s[store] for s in made.stats) for store in STORES},
        "splits": made.stats,
    }  # fmt: skip
    manifest = {
        "schema": SCHEMA_VERSION, "dataset_hash": content.hexdigest(),
        "label_source": label_source, "critic": None,
        "models": sorted({name for split in made.stats for name in split["models"] if name}),
        "imported": taken, "config": {"filters": {}}, "tables": made.tables,
    }  # fmt: skip
    write_json(folder / "stats.json", summary)
    write_atomic(folder / "README.md", render_card(CardConfig(), manifest, summary))
    write_json(folder / "manifest.json", manifest)
    return summary
