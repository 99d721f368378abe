"""From judged chunks to shards: one split after the other, in memory that does not grow with it."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ft2.errors import RunError
from ft2.nsq.config import NsqConfig
from ft2.nsq.lookalikes import check_lookalikes
from ft2.nsq.manifest import ContentHash, describe_shards
from ft2.nsq.mining import core_path, keep_one_a_prompt, mine_split
from ft2.nsq.pairing import Rule
from ft2.nsq.scored import RangeFile, split_batches, write_batches
from ft2.nsq.shards import MEDIA_BATCH, Columns, cut, write_table
from ft2.nsq.splits import UNIQUE_SPLIT
from ft2.nsq.tables import Media, Provenance, clip_columns, pair_columns, view_columns
from ft2.nsq.tally import Tally
from ft2.pairs import DIMENSIONS, STORES, clip_schema, pair_schema, view_schema
from ft2.runs import Progress

_LIGHT_BATCH = 2048
_LIGHT_BYTES = 1024
"""About what a row without media takes, with room to spare."""
_PREFIX = 16


@dataclass
class Made:
    """What was written."""

    tables: list[dict[str, Any]] = field(default_factory=list)
    stats: list[dict[str, Any]] = field(default_factory=list)
    dataset_hash: str = ""


@dataclass(frozen=True)
class Layout:
    """How tables are cut into files."""

    train_shards: int = 32
    """Least number of files of a table's train split."""
    shard_bytes: int = 450_000_000
    """About how many bytes a file may have."""
    sample_rate: int = 16000
    """Of the sounds, in Hz."""


def assemble(
    config: NsqConfig,
    output: Path,
    chunks: Sequence[Path],
    splits: Sequence[str],
    media: Media,
    provenance: Provenance,
    progress: Progress,
) -> Made:
    """Pair the judged clips of every split and write the shards of all tables.

    Raises:
        RunError: two conditions have the same file, clips of two splits look the same, or a clip
            vanished or changed.
    """
    work = output / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    made, content = Made(), ContentHash()
    layout = Layout(config.train_shards, config.shard_bytes, config.clip.sample_rate)
    for split in splits:
        write_batches(work / f"{split}.scored", split_batches(chunks, split))
    judged = {split: work / f"{split}.scored" for split in splits}
    check_unique(list(judged.values()))
    if config.filters.max_duplicate_bits is not None:
        check_lookalikes(judged, config.filters.max_duplicate_bits)
    for number, split in enumerate(splits, start=1):
        with RangeFile(work / f"{split}.scored") as scored:
            rule = rule_of(config, scored)
            tally = Tally(split, rule.thresholds)
            counts = mine_split(scored, rule, work, split, tally.add)
            made.stats.append(tally.to_json())
            write_split(layout, output, split, scored, counts, media, provenance, content, made)
        pairs = made.stats[-1]["pairs"]
        progress.update("shards", number, len(splits), f"{split}: {pairs} pairs")
    made.dataset_hash = content.hexdigest()
    shutil.rmtree(work)
    return made


def check_unique(scored_paths: Sequence[Path]) -> None:
    """Refuse a file that is a clip of two conditions; within one, filters drop the second.

    Raises:
        RunError: with the clip and both conditions.
    """
    parts = []
    for path in scored_paths:
        with RangeFile(path) as scored:
            for start in range(0, len(scored), 65_536):
                ids = scored.read(start, min(start + 65_536, len(scored)))["clip_id"].to_pylist()
                parts.append(np.array([int(i[:_PREFIX], 16) for i in ids], np.uint64))
    prefixes = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    ordered = np.sort(prefixes)
    twice = set(ordered[:-1][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    owners: dict[str, list[str]] = {}
    for path in scored_paths:
        with RangeFile(path) as scored:
            table = scored.read(0, len(scored)).select(["clip_id", "condition_id", "model", "seed"])
        for row in table.to_pylist():
            if int(row["clip_id"][:_PREFIX], 16) in twice:
                where = f"{row['condition_id']} ({row['model']}, seed {row['seed']})"
                owners.setdefault(row["clip_id"], []).append(where)
    repeated = {clip: where for clip, where in owners.items() if len(where) > 1}
    if repeated:
        lines = [f"  {clip[:16]}: {', '.join(where)}" for clip, where in repeated.items()]
        raise RunError(
            f"{len(repeated)} files are clips of several conditions:\n" + "\n".join(lines[:20]),
            "a generator or a manifest gave one file twice: give every condition its own clips",
        )


def write_split(
    layout: Layout,
    output: Path,
    split: str,
    scored: RangeFile,
    counts: dict[str, int],
    media: Media,
    provenance: Provenance,
    content: ContentHash,
    made: Made,
) -> None:
    """Write clips, pairs and views of a split; its pairs lie in core files under `work`."""
    least = layout.train_shards if split == "train" else 1
    bounds = cut(scored.column("media_bytes"), least, layout.shard_bytes)
    paths = write_table(
        output / "data" / "clips", split, clip_schema(layout.sample_rate), bounds,
        _checked(clip_columns(scored, media)), MEDIA_BATCH,
    )  # fmt: skip
    made.tables.append(describe_shards(output, "clips", split, paths, content))
    _write_light(layout, output, split, scored, counts, least, provenance, made, content)
    if split == "test":
        counts = keep_one_a_prompt(scored, output / "work", split, UNIQUE_SPLIT, counts)
        _write_light(layout, output, UNIQUE_SPLIT, scored, counts, 1, provenance, made, None)


def _write_light(
    layout: Layout,
    output: Path,
    split: str,
    scored: RangeFile,
    counts: dict[str, int],
    least: int,
    provenance: Provenance,
    made: Made,
    content: ContentHash | None,
) -> None:
    """Write the pairs and the views of a split; a view without rows has no files."""
    core = core_path(output / "work", split, "pairs")
    tables = [("pairs", pair_schema(), pair_columns(scored, core, provenance))]
    tables += [
        (
            s,
            view_schema(),
            view_columns(scored, core_path(output / "work", split, s), s, provenance),
        )
        for s in STORES
        if counts[s]
    ]
    for name, schema, columns in tables:
        count = counts[name]
        shards = max(1, min(least, count), -(-count * _LIGHT_BYTES // layout.shard_bytes))
        bounds = [count * i // shards for i in range(shards + 1)]
        folder = output / "data" / name
        paths = write_table(folder, split, schema, bounds, columns, _LIGHT_BATCH)
        hashed = content if name == "pairs" else None
        made.tables.append(describe_shards(output, name, split, paths, hashed))


def rule_of(config: NsqConfig, scored: RangeFile) -> Rule:
    """Return what makes a pair in one split, where a median may say from where on is Yes."""
    pairing = config.pairing
    best_worst = pairing.pairs == "best_worst"
    rule = Rule(
        by=pairing.by,
        thresholds=pairing.thresholds.as_tuple(),
        min_margin=pairing.min_margin,
        max_per_condition=1 if best_worst else pairing.max_per_condition,
        widest=best_worst or pairing.prefer == "margin",
        seed=config.seed,
    )
    if pairing.yes_from == "threshold" or not len(scored):
        return rule
    motion, lip, quality = (
        float(np.median(scored.column(f"score_{d}").astype(np.float64))) for d in DIMENSIONS
    )
    return replace(rule, thresholds=(motion, lip, quality))


def _checked(columns: Columns) -> Columns:
    """Return the same columns, refusing a video that is not the one that was judged."""

    def checked(start: int, stop: int) -> dict[str, Any]:
        try:
            values = dict(columns(start, stop))
        except FileNotFoundError as error:
            raise RunError(
                f"the clip {error.filename} was judged and is gone",
                "bring it back, or build in a new output (scores are kept with store=FILE)",
            ) from error
        for clip_id, video in zip(values["clip_id"].to_pylist(), values["video"], strict=True):
            if hashlib.sha256(video["bytes"]).hexdigest() != clip_id:
                raise RunError(
                    f"the clip {video['path']} is not the file that was judged",
                    "it was changed after its judging: build in a new output",
                )
        return values

    return checked
